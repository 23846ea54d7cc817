"""Generation for several sequences at once: the weights are read once for all of them, keys and values for each."""

from __future__ import annotations

from sentinel.measure.results import Result
from sentinel.measure.suites.generation import check_fits, generate_in_turn, level_subjects
from sentinel.measure.suites.request import Request


def run(request: Request) -> list[Result]:
    """Rows for Hugging Face and each level, per number of sequences."""
    check_fits(request)
    subjects = [request.engines.hugging_face(), *level_subjects(request)]
    rows: list[Result] = []
    for batch in request.settings.batches:
        rows += [one.row for one in generate_in_turn(request, "batch", subjects, batch=batch)]
    return rows
