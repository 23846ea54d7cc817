"""Decoding after 64 to 1,000 tokens, at every pruning ratio: where removed heads pay.

Each step reads all keys and values of the tokens before it, so that the longer they are, the more a removed head saves.
The prompt is read once; then all engines decode a few tokens in turn. The reference is the same level, not pruned.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from sentinel.infer.engine import Engine, OpenSequence
from sentinel.infer.sampling import Sampler, SamplingSettings
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
    batch = settings.batch
    prompts = random_prompts(request.loaded.spec.vocab_size, batch, length)
    sequences = {s.name: s.own_engine.open_all(prompts, room)[0] for s in subjects}
    step_bytes = {s.name: s.own_engine.step_bytes(batch, length + room / 2) for s in subjects}
    runs: dict[str, Run] = {
        s.name: functools.partial(_decode, request, s.own_engine, sequences[s.name], step_bytes[s.name])
        for s in subjects
    }
    described = functools.partial(request.row, "context", phase="decode", batch=batch, prompt_tokens=length)
    new = {"new_tokens": settings.new_tokens}
    rows = {s.name: described(s, speedup_over=s.engine.name, **new) for s in subjects}
    samples = request.in_turn(runs, rows, f"Context, {length} tokens")
    for s in subjects:
        s.own_engine.close(*sequences[s.name])
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


def _decode(request: Request, engine: Engine, sequences: Sequence[OpenSequence], step_bytes: int) -> Sample:
    """Milliseconds per token of the next tokens, whose values do not matter to speed, and how fast memory was then read."""
    count, first = request.settings.new_tokens, [0] * len(sequences)
    sampler = Sampler(SamplingSettings(), len(sequences))
    start = time.perf_counter()
    if engine.chooses(sampler.settings):
        list(engine.choose_on(sequences, first, sampler, count))
    else:
        for token in range(count):
            engine.step(sequences, [token % engine.spec.vocab_size] * len(sequences))
    taken = {"tpot_ms": (time.perf_counter() - start) / count * 1e3}
    return {**taken, **request.engines.reading(step_bytes)}
