"""The comparison of ``sentinel adapt`` with one-shot pruning and recovery."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentinel.commands.adapt import make_controller, windows_of
from sentinel.errors import InputError

if TYPE_CHECKING:
    from sentinel.adapt.budget import Budget
    from sentinel.adapt.comparison import Comparison, Trial
    from sentinel.adapt.controller import ControllerSettings
    from sentinel.models.decoder import Decoder
    from sentinel.models.sources import LoadedModel

FILE = "comparison.json"


def compare(
    options: argparse.Namespace,
    loaded: LoadedModel,
    dense: Decoder,
    budget: Budget,
    settings: ControllerSettings,
    output: Path,
) -> None:
    """The controller and one-shot pruning with recovery at the same budget and time; written after every seed, and
    printed."""
    from sentinel.adapt.comparison import Comparison, Trial, one_shot_for
    from sentinel.adapt.corpora import load_texts, refuse_seen_text
    from sentinel.measure.judge import Judge
    from sentinel.progress import say

    judges = load_texts(options.judge, "test")
    each = -(-options.judge_tokens // len(judges))
    judge = Judge(loaded.decoder, loaded.require_tokenizer(), judges, loaded.record, tokens_per_text=each)
    label = ", ".join(text.label for text in judges)
    trials: list[Trial] = []
    for seed in options.compare_one_shot:
        say(f"seed {seed}")
        options.seed = seed
        windows, step = windows_of(options, loaded)
        refuse_seen_text(loaded.record.then(step), judges)
        chosen = dataclasses.replace(settings, seed=seed)
        controller = make_controller(loaded, dense, windows, budget, chosen, None)
        best: list[Decoder] = []

        def keep(student: Decoder, is_best: bool, best: list[Decoder] = best) -> None:
            if is_best:
                best[:] = [student]

        record = controller.run(keep)
        # One-shot plans once, as the first cycle does; all other time of the controller is its time to learn.
        left = record.seconds - record.cycles[0].seconds["prune"]
        recovery = dataclasses.replace(settings.recovery, seed=seed * 1000, evaluations=10)
        model, seconds, updates = one_shot_for(left, dense, windows, budget, recovery)
        trials.append(
            Trial(
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
        )
        _write(Comparison(options.budget, label, tuple(trials)), output, options.force or len(trials) > 1)
    _print(Comparison(options.budget, label, tuple(trials)))
    print(output / FILE)


def _ratio(judged: dict[str, Any], seed: int) -> float:
    """The perplexity over dense; `InputError` for one beyond a number, of which no difference can be told."""
    found = judged["perplexity_ratio"]
    if found is None:
        raise InputError(f"seed {seed}: a model's loss of {judged['nll']:.0f} nats is no perplexity; keep more heads")
    return found


def _write(comparison: Comparison, output: Path, replace: bool) -> None:
    """All of it as JSON in the output folder; an interval that is not known has nulls."""
    from sentinel.files import write_folder

    body = {**dataclasses.asdict(comparison), "difference": comparison.difference, "verdict": comparison.verdict}
    with write_folder(output, replace) as temporary:
        (temporary / FILE).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def _print(comparison: Comparison) -> None:
    """Table and verdict on stdout."""
    from sentinel.report.terminal import print_table, stdout_console

    rows = [
        [
            f"{trial.seed}",
            f"{trial.heads}",
            f"{trial.cycles}",
            *(f"{ratio:.3f}x" for ratio in (trial.controller_ratio, trial.one_shot_ratio)),
            f"{trial.controller_seconds:.0f}",
            f"{trial.one_shot_seconds:.0f}",
            f"{trial.controller_updates}",
            f"{trial.one_shot_updates}",
        ]
        for trial in comparison.trials
    ]
    console = stdout_console()
    columns = ["seed", "heads", "cycles", "controller", "one-shot", "seconds", "one-shot", "updates", "one-shot"]
    print_table(console, columns, rows)
    console.print(
        f"Perplexity over the unpruned model's on {comparison.text}, budget {comparison.budget}.", style="dim"
    )
    console.print(comparison.verdict)
