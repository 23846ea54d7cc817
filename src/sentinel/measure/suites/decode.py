"""Generation by Hugging Face ``generate()`` and by every level asked for, in turn, with peak memory."""

from __future__ import annotations

from dataclasses import replace

from sentinel.measure.memory import MemoryRequest, measure_peak_memory
from sentinel.measure.results import Result
from sentinel.measure.suites.generation import Generated, check_fits, generate_in_turn, level_subjects
from sentinel.measure.suites.request import Request
from sentinel.models.dtypes import name_of
from sentinel.progress import track


def run(request: Request) -> list[Result]:
    """A row for Hugging Face and one per engine."""
    settings = request.settings
    check_fits(request)
    subjects = [request.engines.hugging_face(), *level_subjects(request)]
    found = generate_in_turn(request, "decode", subjects, batch=settings.batch)
    reference = found[0].tokens
    return [
        replace(
            one.row,
            peak_memory_mb=_peak_memory(request, one),
            same_tokens_as_reference=one.tokens == reference,
        )
        for one in track(found, "Measuring memory", len(found))
    ]


def _peak_memory(request: Request, one: Generated) -> float | None:
    if request.number > 1:
        return request.earlier[one.row.key].peak_memory_mb
    settings, subject = request.settings, one.subject
    asked = MemoryRequest(
        request.source,
        request.random_weights,
        subject.name,
        settings.prompt,
        settings.new_tokens,
        settings.batch,
        device=str(request.loaded.decoder.device),
        dtype=name_of(request.loaded.decoder.dtype),
    )
    return measure_peak_memory(asked, None if subject.level is None else subject.own_engine.packed)
