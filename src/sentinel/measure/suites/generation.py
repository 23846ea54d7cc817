"""What the suites that generate text have in common: all subjects in turn, a row for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from sentinel.measure.method import Run, generate_timed, random_prompts, timed_result
from sentinel.measure.results import Result, Sample
from sentinel.measure.suites.engines import Subject
from sentinel.measure.suites.request import Request


@dataclass(frozen=True)
class Generated:
    """A subject's row and the tokens that it generated, one list per prompt."""

    subject: Subject
    row: Result
    tokens: list[list[int]]


def check_fits(request: Request) -> None:
    """Refuse prompts and new tokens that do not fit the model's context; worth asking before engines are made."""
    request.check_context(max(request.settings.prompt_tokens) + request.settings.new_tokens)


def generate_in_turn(request: Request, suite: str, subjects: Sequence[Subject], *, batch: int) -> list[Generated]:
    """Greedy generation by all ``subjects``, the first of which is the reference.

    Raises `InputError` when the tokens do not fit the model's context.
    """
    settings = request.settings
    check_fits(request)
    prompts = random_prompts(request.loaded.spec.vocab_size, batch, settings.prompt)
    context = settings.prompt + settings.new_tokens // 2
    tokens: dict[str, list[list[int]]] = {}

    def once(subject: Subject) -> Sample:
        tokens[subject.name], sample = generate_timed(subject.engine, prompts, settings.new_tokens)
        return {**sample, **request.engines.reading(subject.engine.step_bytes(batch, context))}

    runs: dict[str, Run] = {subject.name: functools.partial(once, subject) for subject in subjects}
    reference = subjects[0].name
    described = functools.partial(request.row, suite, batch=batch, speedup_over=reference)
    sizes = {"prompt_tokens": settings.prompt, "new_tokens": settings.new_tokens}
    rows = {subject.name: described(subject, **sizes) for subject in subjects}
    samples = request.in_turn(runs, rows, f"Suite {suite}")
    found = []
    for subject in subjects:
        timed = timed_result(
            rows[subject.name],
            samples[reference],
            samples[subject.name],
            passes=request.number,
            step_bytes=subject.engine.step_bytes(batch, context),
            cache_mb=request.cache_mb,
        )
        found.append(Generated(subject, timed, tokens[subject.name]))
    return found


def level_subjects(request: Request, heads: float = 0.0, neurons: float = 0.0) -> list[Subject]:
    """The engines of the levels and precisions that the settings name, at a width."""
    settings = request.settings
    return [
        request.engines.at(level, precision, heads=heads, neurons=neurons, expand_kv=settings.expand_kv)
        for level in request.levels
        for precision in (settings.precision if level == 3 else (None,))
    ]
