"""``sentinel recover``: win back quality after pruning, by distillation from the unpruned model."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.arguments import (
    add_model,
    add_output,
    check_model_output,
    command_again,
    real_number,
    set_threads,
    telling_what_is_kept,
    whole_number,
)
from sentinel.models.record import SELF

if TYPE_CHECKING:
    from sentinel.adapt.recovery.recover import Recovery
    from sentinel.adapt.recovery.settings import RecoverySettings

MINUTES = 30.0
LENGTH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_output(parser)
    parser.add_argument("--teacher", metavar="MODEL", required=True, help="the unpruned model")
    parser.add_argument(
        "--text", metavar="TEXT", default=SELF,
        help="self (default: text that the teacher writes), text files, folders or built-in texts, with commas between",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", metavar="TEXT",
        help="text that decides when to stop (default: a part of the text, of built-in ones the valid splits)",
    )  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", metavar="N", type=real_number, help=f"time for all of it (default {MINUTES:g})")
    length.add_argument("--steps", metavar="N", type=whole_number(1), help="instead: number of updates")
    parser.add_argument(
        "--train", default="all", metavar="WHAT",
        help="biases (and norms), gates (too), projections (output projections too), or all of the layers (default)",
    )  # fmt: skip
    parser.add_argument("--tokens", metavar="N", type=whole_number(1), default=262_144, help="of text (default 262144)")
    parser.add_argument("--held-out-tokens", metavar="N", type=whole_number(1), default=8192, help="default 8192")
    parser.add_argument("--length", metavar="N", type=whole_number(2), help="of a window (default 256, or all it can)")
    parser.add_argument("--batch", metavar="N", type=whole_number(1), help="windows at once")
    parser.add_argument("--accumulate", metavar="N", type=whole_number(1), help="batches per update")
    parser.add_argument("--learning-rate", metavar="X", type=real_number, help="highest one of the schedule")
    parser.add_argument("--temperature", metavar="X", type=real_number, help="of teacher and student in the loss")
    parser.add_argument("--state-weight", metavar="X", type=real_number, help="weight of the hidden-state loss")
    parser.add_argument("--top", metavar="N", type=whole_number(1), help="tokens kept of each teacher's prediction")
    parser.add_argument("--evaluations", metavar="N", type=whole_number(1), help="how often held-out text is judged")
    parser.add_argument(
        "--patience", metavar="N", type=whole_number(1), help="of them without gain that end it; the start is none"
    )
    parser.add_argument("--checkpoint-minutes", metavar="N", type=real_number, help="between two saved states")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 products (default: if they pay)"
    )
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory: compute layers twice, keep what enters them"
    )
    parser.add_argument("--seed", metavar="N", type=whole_number(0), help="of sampling and order")
    parser.add_argument("--state", metavar="DIR", help="folder for state and metrics (default: OUTPUT.recovery)")
    parser.add_argument("--tensorboard", action="store_true", help="TensorBoard events in the state folder too")
    parser.add_argument("--threads", metavar="N", type=whole_number(1), help="threads (default: physical cores)")


def run(options: argparse.Namespace) -> None:
    from sentinel.adapt.recovery.run import make_accelerator
    from sentinel.adapt.recovery.state import STATE, clear_state
    from sentinel.api.learning import recover
    from sentinel.api.model import Model
    from sentinel.formats.sources import load
    from sentinel.progress import console

    output = check_model_output(options.output, options.force, options.model, options.teacher)
    settings = settings_of(options)
    main = make_accelerator().is_main_process
    console.quiet = console.quiet or not main
    set_threads(_threads(options.threads))
    state = Path(options.state) if options.state else output.with_name(f"{output.name}.recovery")

    def what_is_kept() -> str:
        if not (state / STATE).exists():
            return "no step is kept yet"
        return f"the state is kept in {state}; go on with the same command: {command_again(options)}"

    with telling_what_is_kept(what_is_kept):
        made = recover(
            Model(load(options.model, random_weights=options.random_weights), options.model),
            options.teacher,
            text=options.text,
            held_out=options.held_out,
            tokens=options.tokens,
            held_out_tokens=options.held_out_tokens,
            length=options.length,
            settings=settings,
            state=state,
            in_place=True,
        )
    if not main:
        return
    made.save(output, force=options.force)
    clear_state(state)
    assert made.recovery is not None
    _print(made.recovery, state)
    print(output)


def settings_of(options: argparse.Namespace) -> RecoverySettings:
    """Settings from the arguments; what was not given is as in `RecoverySettings`."""
    from sentinel.adapt.recovery.settings import RecoverySettings

    names = {field.name for field in dataclasses.fields(RecoverySettings)}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if options.steps is None:
        given.setdefault("minutes", MINUTES)
    return RecoverySettings(**given)


def _threads(asked: int | None) -> int | None:
    """Threads of this process: processes that ``accelerate launch`` started on one machine share its cores."""
    from sentinel.cores import physical_cores

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, physical_cores() // processes) if processes > 1 and asked is None else asked


def _print(found: Recovery, state: Path) -> None:
    from sentinel.adapt.recovery.likelihood import perplexity_of
    from sentinel.report.terminal import print_table, stdout_console

    first, best = found.held_out[0], found.best
    rows = [
        [
            level,
            f"{first.perplexity[level]:.2f}",
            f"{perplexity:.2f}",
            f"{perplexity_of(best.nll[level] - found.teacher_nll):.3f}x",
            f"{first.kl[level]:.4f}",
            f"{best.kl[level]:.4f}",
        ]
        for level, perplexity in best.perplexity.items()
    ]
    console = stdout_console()
    print_table(console, ["level", "perplexity before", "after", "over teacher", "KL before", "after"], rows)
    console.print(
        f"On held-out text, after {best.step} of {len(found.steps)} steps; {found.tokens:,} training tokens at "
        f"{found.tokens_per_s:.0f} tokens/s, all told. Metrics are in {state}.",
        style="dim",
    )
