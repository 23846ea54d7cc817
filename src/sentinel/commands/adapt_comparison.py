"""The comparison of ``sentinel adapt`` with one-shot pruning and recovery."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.adapt import TRAIN_LENGTH, make_controller, right_aligned_table, windows_of

if TYPE_CHECKING:
    from sentinel.adapt.budget import Budget
    from sentinel.adapt.comparison import Comparison, Trial
    from sentinel.adapt.controller import ControllerSettings
    from sentinel.models.decoder import Decoder
    from sentinel.models.sources import LoadedModel

FILE = "comparison.json"


def is_comparison(folder: Path) -> bool:
    """True for a folder that holds a comparison, which may be replaced."""
    return (folder / FILE).exists()


def compare(
    options: argparse.Namespace, loaded: LoadedModel, dense: Decoder, budget: Budget, settings: ControllerSettings
) -> Comparison:
    """The controller and one-shot pruning with recovery, at the same budget and time, for every seed."""
    from sentinel.adapt.comparison import Comparison, Trial, one_shot_for
    from sentinel.adapt.corpora import load_texts, refuse_shared_documents
    from sentinel.measure.perplexity import evaluate
    from sentinel.progress import say

    judges = load_texts(options.judge, "test")
    context = min(2 * TRAIN_LENGTH, dense.spec.max_seq_len)

    def judge(model: Decoder) -> float:
        tokenizer = loaded.require_tokenizer()
        return evaluate(model, tokenizer, judges, context=context, max_tokens=options.judge_tokens).nll

    trials: list[Trial] = []
    for seed in options.compare_one_shot:
        say(f"seed {seed}")
        options.seed = seed
        windows, documents = windows_of(options, loaded)
        refuse_shared_documents(documents, judges)
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
                controller_nll=judge(best[0]),
                one_shot_nll=judge(model),
                controller_seconds=record.seconds,
                one_shot_seconds=seconds,
                controller_updates=sum(cycle.updates for cycle in record.cycles),
                one_shot_updates=updates,
                heads=record.best.heads,
                cycles=len(record.cycles),
            )
        )
    return Comparison(options.budget, ", ".join(text.label for text in judges), judge(dense), tuple(trials))


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Table and verdict on stdout, and all of it as JSON in the output folder."""
    from sentinel.files import write_text

    body = {**dataclasses.asdict(comparison), "difference": comparison.difference, "verdict": comparison.verdict}
    write_text(output / FILE, json.dumps(body, indent=1) + "\n")
    table, console = right_aligned_table(
        "seed", "heads", "cycles", "controller", "one-shot", "seconds", "one-shot", "updates", "one-shot"
    )
    for trial in comparison.trials:
        over = (math.exp(nll - comparison.dense_nll) for nll in (trial.controller_nll, trial.one_shot_nll))
        table.add_row(
            f"{trial.seed}",
            f"{trial.heads}",
            f"{trial.cycles}",
            *(f"{ratio:.3f}x" for ratio in over),
            f"{trial.controller_seconds:.0f}",
            f"{trial.one_shot_seconds:.0f}",
            f"{trial.controller_updates}",
            f"{trial.one_shot_updates}",
        )
    console.print(table)
    console.print(
        f"Perplexity over the unpruned model's on {comparison.text}, budget {comparison.budget}.", style="dim"
    )
    console.print(comparison.verdict)
    print(output / FILE)
