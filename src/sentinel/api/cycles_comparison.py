"""Do cycles pay? The controller against one-shot pruning with recovery, at the same budget and time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentinel.adapt.cycles.comparison import Comparison, Trial, one_shot_for
from sentinel.adapt.cycles.controller import ControllerSettings
from sentinel.adapt.text.corpora import load_texts, refuse_seen_text
from sentinel.api.adapting import Task
from sentinel.errors import InputError
from sentinel.files import write_folder
from sentinel.measure.judge import Judge
from sentinel.models.decoder import Decoder
from sentinel.progress import say

FILE = "comparison.json"


def compare_cycles(
    task: Task,
    settings: ControllerSettings,
    seeds: Sequence[int],
    folder: Path,
    *,
    judged_by: str,
    tokens: int,
    force: bool = False,
) -> Comparison:
    """Both ways with every seed, judged by ``tokens`` of the texts ``judged_by``; ``comparison.json`` in ``folder`` is
    written after every seed."""
    judges, loaded = load_texts(judged_by, "test"), task.loaded
    first = task.windows(seeds[0])
    refuse_seen_text(loaded.record.then(first[1]), judges)
    judge = Judge(
        loaded.decoder, loaded.require_tokenizer(), judges, loaded.record, tokens_per_text=-(-tokens // len(judges))
    )
    trials: list[Trial] = []
    comparison = None
    for seed in seeds:
        say(f"seed {seed}")
        windows, step = first if seed == seeds[0] else task.windows(seed)
        refuse_seen_text(loaded.record.then(step), judges)
        trials.append(_trial(task, dataclasses.replace(settings, seed=seed), windows, judge))
        comparison = Comparison(task.asked, ", ".join(text.label for text in judges), tuple(trials))
        _write(comparison, folder, force or len(trials) > 1)
    assert comparison is not None
    return comparison


def _trial(task: Task, settings: ControllerSettings, windows: Any, judge: Judge) -> Trial:
    seed = settings.seed
    best: list[Decoder] = []

    def keep(student: Decoder, is_best: bool) -> None:
        if is_best:
            best[:] = [student]

    record = task.controller(windows, settings, timed=False).run(keep)
    # One-shot plans once, as the first cycle does; all other time of the controller is its time to learn.
    left = record.seconds - record.cycles[0].seconds["prune"]
    recovery = dataclasses.replace(settings.recovery, seed=seed * 1000, evaluations=10)
    model, seconds, updates = one_shot_for(left, task.dense, windows, task.budget, recovery)
    return Trial(
        seed=seed,
        controller_ratio=_ratio(judge(best[0]), seed),
        one_shot_ratio=_ratio(judge(model), seed),
        controller_seconds=record.seconds,
        one_shot_seconds=seconds,
        controller_updates=sum(cycle.updates for cycle in record.cycles),
        one_shot_updates=updates,
        heads=record.best.heads,
        cycles=len(record.cycles),
    )


def _ratio(judged: dict[str, Any], seed: int) -> float:
    """The perplexity over dense; `InputError` for one beyond a number, of which no difference can be told."""
    found = judged["perplexity_ratio"]
    if found is None:
        raise InputError(f"seed {seed}: a model's loss of {judged['nll']:.0f} nats is no perplexity; keep more heads")
    return found


def _write(comparison: Comparison, output: Path, replace: bool) -> None:
    """All of it as JSON in the output folder; an interval that is not known has nulls."""
    body = {**dataclasses.asdict(comparison), "difference": comparison.difference, "verdict": comparison.verdict}
    with write_folder(output, replace) as temporary:
        (temporary / FILE).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
