"""Decoding after 64 to 1,000 tokens, at every pruning ratio: where removed heads pay.

Each step reads all keys and values of the tokens before it, so that the longer they are, the more a removed head saves.
The prompt is read once; then all engines decode a few tokens in turn. The reference is the same level, not pruned.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from sentinel.infer.engine import Engine, OpenSequence
from sentinel.measure.method import Run, random_prompts, timed_result
from sentinel.measure.results import Result, Sample
from sentinel.measure.suites.engines import Subject
from sentinel.measure.suites.generation import level_subjects
from sentinel.measure.suites.request import Request


def run(request: Request) -> list[Result]:
    """Rows per length, level and ratio of heads; `InputError` for lengths that were given and do not fit the context."""
    settings = request.settings
    room = settings.new_tokens * (settings.rounds_of_pass + 1)
    if "lengths" in request.given:
        request.check_context(max(settings.lengths) + room)
    request.check_context(1 + room)
    longest = request.loaded.spec.max_seq_len - room
    lengths = [n for n in settings.lengths if n <= longest] or [longest]
    ratios = (0.0, *(heads for heads in settings.heads if heads))
    subjects = [subject for heads in ratios for subject in level_subjects(request, heads)]
    return [row for length in lengths for row in _rows(request, subjects, length, room)]


def _rows(request: Request, subjects: Sequence[Subject], length: int, room: int) -> list[Result]:
    settings = request.settings
    (prompt,) = random_prompts(request.loaded.spec.vocab_size, 1, length)
    sequences = {s.name: s.own_engine.open(prompt, room)[0] for s in subjects}
    step_bytes = {s.name: s.own_engine.step_bytes(1, length + room / 2) for s in subjects}
    runs: dict[str, Run] = {
        s.name: functools.partial(_decode, request, s.own_engine, sequences[s.name], step_bytes[s.name])
        for s in subjects
    }
    described = functools.partial(request.row, "context", phase="decode", batch=1, prompt_tokens=length)
    new = {"new_tokens": settings.new_tokens}
    rows = {s.name: described(s, speedup_over=s.engine.name, **new) for s in subjects}
    samples = request.in_turn(runs, rows, f"Context, {length} tokens")
    for s in subjects:
        s.own_engine.close(sequences[s.name])
    return [
        timed_result(
            rows[subject.name],
            samples[subject.engine.name],
            samples[subject.name],
            passes=request.number,
            step_bytes=step_bytes[subject.name],
            cache_mb=request.cache_mb,
        )
        for subject in subjects
    ]


def _decode(request: Request, engine: Engine, sequence: OpenSequence, step_bytes: int) -> Sample:
    """Milliseconds per token of the next tokens, whose values do not matter to speed, and how fast memory was then read."""
    start = time.perf_counter()
    for token in range(request.settings.new_tokens):
        engine.step([sequence], [token % engine.spec.vocab_size])
    taken = {"tpot_ms": (time.perf_counter() - start) / request.settings.new_tokens * 1e3}
    return {**taken, **request.engines.reading(step_bytes)}
