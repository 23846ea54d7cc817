"""Verbs that measure: `evaluate`, `profile`, `bench`, `report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentinel.adapt.corpora import BUILT_IN_TEXTS
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
    text: str = BUILT_IN_TEXTS,
    *,
    context: int = 512,
    stride: int | None = None,
    max_tokens: int | None = None,
    teacher: Model | str | Path | None = None,
    **width: Any,
) -> Result:
    """Perplexity, bits per byte and variety of ``model`` on ``text`` (built-in ones: their test splits), and agreement with
    a ``teacher``. ``width`` are the arguments of `Model.engine`: level, precision, heads, neurons, threads.

    Raises `InputError` for random weights and for text that the model was calibrated or trained on.
    """
    source = as_model(model)
    engine = source.engine(**width)
    opened = OpenedEngine(engine, source.tokenizer, source.name, source.record)
    return evaluate_engine(
        opened,
        text,
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        teacher=None if teacher is None else as_model(teacher).loaded,
        heads=width.get("heads", 0.0),
        neurons=width.get("neurons", 0.0),
    )
