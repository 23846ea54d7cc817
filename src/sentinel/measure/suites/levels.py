"""Generation by every level, not pruned and pruned, with Hugging Face ``generate()`` as the reference."""

from __future__ import annotations

from sentinel.measure.results import Result
from sentinel.measure.suites.generation import check_fits, generate_in_turn, level_subjects
from sentinel.measure.suites.request import Request


def run(request: Request) -> list[Result]:
    """A row for Hugging Face, and one per level and ratio of heads. Level 0 masks heads, the others really remove them."""
    check_fits(request)
    subjects = [request.engines.hugging_face()]
    for heads in request.settings.heads:
        subjects += level_subjects(request, heads)
    return [one.row for one in generate_in_turn(request, "levels", subjects, batch=request.settings.batch)]
