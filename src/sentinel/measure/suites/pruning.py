"""Generation at every pruning ratio, heads alone and with neurons: Hugging Face, level 0, and levels 1 to 3.

Heads and neurons are removed in random order: right for speed, which knows only counts; quality is another suite's.
"""

from __future__ import annotations

from sentinel.measure.results import Result
from sentinel.measure.suites.generation import check_fits, generate_in_turn, level_subjects
from sentinel.measure.suites.request import Request


def run(request: Request) -> list[Result]:
    """Rows for Hugging Face, level 0 (not pruned: its masks save nothing), and each level at each ratio."""
    settings = request.settings
    check_fits(request)
    subjects = [request.engines.hugging_face(), request.engines.at(0)]
    for heads in settings.heads:
        subjects += level_subjects(request, heads)
    for heads in settings.heads:
        neurons = heads if settings.neurons is None else settings.neurons
        if neurons:
            subjects += level_subjects(request, heads, neurons)
    return [one.row for one in generate_in_turn(request, "pruning", subjects, batch=settings.batch)]
