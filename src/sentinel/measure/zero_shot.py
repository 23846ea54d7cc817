"""Accuracy of an engine on the project's own zero-shot tasks: the likeliest continuation is its choice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sentinel.adapt.text.choices import TASKS, Item, task_items
from sentinel.infer.opening import OpenedEngine
from sentinel.measure.perplexity import Scorer
from sentinel.measure.results import Result
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import track

DEFAULT_ITEMS = 200
SUITE = "task"


def evaluate_task(
    opened: OpenedEngine, name: str, count: int = DEFAULT_ITEMS, width: tuple[float, float] = (0.0, 0.0)
) -> Result:
    """The share of ``count`` items of a task that ``opened`` gets right, with its binomial standard error.

    ``width`` are the ratios of heads and neurons that the engine leaves out, for the result. Raises `InputError` for random
    weights and for an unknown task.
    """
    opened.require_real_weights("its accuracy")
    engine, tokenizer = opened.engine, opened.require_tokenizer()
    items = task_items(name, count)
    right = [chosen(engine, tokenizer, item) == item.answer for item in track(items, f"Task {name}", len(items))]
    accuracy = sum(right) / len(right)
    spread = math.sqrt(accuracy * (1 - accuracy) / (len(right) - 1)) if 0 < accuracy < 1 else None
    return Result(
        suite=SUITE,
        model=opened.name,
        weights=opened.weights,
        engine=engine.name,
        level=engine.level,
        precision=engine.precision,
        heads_pruned=width[0],
        neurons_pruned=width[1],
        parameters=engine.spec.parameter_count(),
        text=name,
        items=len(items),
        accuracy=accuracy,
        accuracy_stderr=spread,
        chance=TASKS[name].chance,
    )


def chosen(engine: Scorer, tokenizer: TextTokenizer, item: Item) -> int:
    """The number of the choice whose continuation has the largest summed log-probability."""
    kept: dict[tuple[int, ...], NDArray[np.float64]] = {}  # choices of one token share what is before it
    return int(np.argmax([_log_probability(engine, tokenizer, *choice, kept) for choice in item.choices]))


def _log_probability(
    engine: Scorer,
    tokenizer: TextTokenizer,
    context: str,
    continuation: str,
    kept: dict[tuple[int, ...], NDArray[np.float64]],
) -> float:
    ids, before = tokenizer.encode(context + continuation), tokenizer.encode(context)
    ids = ids[-engine.spec.max_seq_len :] if len(ids) > engine.spec.max_seq_len else ids
    scored = max(1, len(ids) - _shared(ids, before))
    key = tuple(ids[:-1])
    if key not in kept:
        logits = engine.score(ids[:-1], scored).astype(np.float64)
        top = logits.max(-1, keepdims=True)
        kept[key] = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return float(sum(row[token] for row, token in zip(kept[key], ids[-scored:], strict=True)))


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
