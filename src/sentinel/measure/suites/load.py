"""Time and memory to load and to the first token, each in a process of its own, from folders that were written just now.

Everything counts from the start of the process: interpreter, imports, reading (from the page cache), the prompt. The fp32
folders hold the same weights in Hugging Face's layout and in ours. Level 3 starts by the model's name, as `generate` does,
from the packed weights that were kept in the round of warm-up.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.hugging_face.model import to_hugging_face
from sentinel.measure.loading import Kind, measure_load
from sentinel.measure.memory import level_3_source
from sentinel.measure.method import Run, interleave, with_ratio
from sentinel.measure.results import Result, median
from sentinel.measure.suites.engines import Subject
from sentinel.measure.suites.request import Request
from sentinel.progress import working


def run(request: Request) -> list[Result]:
    """Rows for Hugging Face, level 1 from an fp32 folder, and level 3 in int8 from what was kept of the model."""
    settings = request.settings
    request.require_cpu("suite load measures")
    request.check_context(settings.prompt + 1)
    subjects: dict[Kind, Subject] = {
        "hugging-face": request.engines.hugging_face(),
        "sentinel": request.engines.at(1),
        "quantised": request.engines.at(3, "int8"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        runs: dict[str, Run] = {}
        for kind, subject in subjects.items():
            with working(f"Writing the model for {subject.name}"):
                folder = _written(request, kind, Path(scratch) / kind)
            runs[kind] = functools.partial(measure_load, kind, folder, settings.prompt, request.engines.threads)
        samples = interleave(runs, settings.rounds, "Loading")
    reference = samples["hugging-face"]
    rows = []
    for kind, subject in subjects.items():
        own = samples[kind]
        row = request.row("load", subject, batch=1, prompt_tokens=settings.prompt, new_tokens=1)
        row = replace(
            row,
            speedup_over=subjects["hugging-face"].name,
            load_ms=median(own, "load_ms"),
            ttft_ms=median(own, "ttft_ms"),
            first_token_ms=median(own, "total_ms"),
            loaded_memory_mb=median(own, "loaded_mb"),
            peak_memory_mb=median(own, "peak_mb"),
        )
        rows.append(with_ratio(row, reference, own))
    return rows


def _written(request: Request, kind: Kind, place: Path) -> Path | str:
    """Where a process of its own finds the model in that form."""
    if kind == "quantised":
        packed = request.engines.at(3, "int8").own_engine.packed
        assert packed is not None
        return level_3_source(request.source, request.random_weights, packed, place)
    if kind == "hugging-face":
        to_hugging_face(request.loaded.decoder).save_pretrained(place)
    else:
        save_checkpoint(request.loaded.decoder, place, None, request.loaded.record)
    return place
