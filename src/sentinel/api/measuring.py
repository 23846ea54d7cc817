"""Verbs that measure: `evaluate`, `profile`, `bench`, `report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sentinel.adapt.corpora import EVERY_BUILT_IN
from sentinel.api.model import Model, as_model
from sentinel.errors import InputError
from sentinel.infer.opening import OpenedEngine
from sentinel.measure.evaluation import evaluate_engine
from sentinel.measure.method import random_prompts
from sentinel.measure.profiling.profile import Profile, profile_engine
from sentinel.measure.results import Result, ResultSet
from sentinel.measure.runner import run_suites
from sentinel.measure.suites import SUITES


def evaluate(
    model: Model | str | Path,
    text: str = EVERY_BUILT_IN,
    *,
    context: int = 512,
    stride: int | None = None,
    max_tokens: int | None = None,
    teacher: Model | str | Path | None = None,
    heads: float = 0.0,
    neurons: float = 0.0,
    **engine: Any,
) -> Result:
    """Perplexity, bits per byte and variety of ``model`` on ``text`` (built-in ones: their test splits), and agreement with
    a ``teacher``. ``heads``, ``neurons`` and ``engine`` are the arguments of `Model.engine`.

    Raises `InputError` for random weights and for text that the model was calibrated or trained on.
    """
    source = as_model(model)
    running = source.engine(heads=heads, neurons=neurons, **engine)
    return evaluate_engine(
        OpenedEngine(running, source.tokenizer, source.name, source.record),
        text,
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        teacher=None if teacher is None else as_model(teacher).loaded,
        width=(heads, neurons),
    )


def profile(
    model: Model | str | Path, *, prompt_tokens: int = 64, new_tokens: int = 20, rounds: int = 5, **engine: Any
) -> Profile:
    """Time and memory per component of a generation from a random prompt; ``engine`` are the arguments of `Model.engine`."""
    running = as_model(model).engine(**engine)
    prompt = random_prompts(running.spec.vocab_size, 1, prompt_tokens)[0]
    return profile_engine(running, prompt, new_tokens, rounds)


def bench(
    suite: str,
    model: Model | str | Path = "smollm2-135m",
    *,
    random_weights: int | None = None,
    quick: bool = False,
    threads: int | None = None,
    resume: ResultSet | None = None,
    keep: Callable[[ResultSet], object] = lambda _: None,
    **options: Any,
) -> ResultSet:
    """Measure one suite (`sentinel.measure.suites.SUITES`); ``options`` are fields of its `Settings`.

    ``random_weights`` is the seed that ``model`` was or is loaded with. What ``resume`` holds is not measured again, and
    ``keep`` gets all results after every pass. Raises `InputError` for an unknown suite or option.
    """
    return _measured(model, {suite: options}, random_weights, threads=threads, quick=quick, resume=resume, keep=keep)


def report(
    model: Model | str | Path = "smollm2-135m",
    folder: str | Path = "report",
    *,
    random_weights: int | None = None,
    quick: bool = False,
    force: bool = False,
    threads: int | None = None,
    resume: ResultSet | None = None,
    **options: Any,
) -> ResultSet:
    """Measure ``model`` by every suite that suits it, and write HTML, Markdown and ``results.json`` to ``folder``.

    ``options`` are given to the suites that take them. What is measured is kept in the folder after every suite. Raises
    `InputError` for a folder that holds anything, but for what ``resume`` came from or, with ``force``, an earlier report.
    """
    raise NotImplementedError


def suites_for(model: Model, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The suites of a report on ``model``, each with those of ``options`` that it takes."""
    judged = model.weights == "real" and model.tokenizer is not None
    return {
        suite.name: {name: value for name, value in options.items() if name in suite.options}
        for suite in SUITES.values()
        if suite.in_report and (judged or not suite.needs_text)
    }


def _measured(
    model: Model | str | Path, suites: Mapping[str, Mapping[str, Any]], random_weights: int | None, **run: Any
) -> ResultSet:
    """Run ``suites``; some start processes of their own, which load the model again by its name."""
    from sentinel.api.model import load

    source = model if isinstance(model, Model) else load(model, random_weights=random_weights)
    if source.source is None:
        raise InputError(f"{source.name} is in memory only; save it first, and load it from there to measure it")
    return run_suites(source.loaded, suites, source=source.source, random_weights=random_weights, **run)
