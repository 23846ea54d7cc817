"""``sentinel optimize``: search precisions and widths for the best model within a goal, and write it."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import (
    add_output,
    check_model_output,
    command_again,
    real_number,
    set_threads,
    share,
    telling_what_is_kept,
    whole_number,
)
from sentinel.commands.pruning import KINDS, ratio
from sentinel.models.record import SELF


def positive(text: str) -> float:
    """Argument type: a number above 0."""
    value = real_number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def widths(text: str) -> tuple[tuple[float, float], ...]:
    """Argument type: shares of heads and neurons as ``0.2/0.1``, with commas between."""
    found = []
    for part in text.split(","):
        heads, slash, neurons = part.partition("/")
        if not slash:
            raise argparse.ArgumentTypeError(f"{part!r} is not HEADS/NEURONS, as 0.2/0.1")
        found.append((ratio(heads), ratio(neurons)))
    if len(set(found)) < len(found) or (0.0, 0.0) in found:
        raise argparse.ArgumentTypeError(f"{text!r} names a width twice, or one that removes nothing")
    return tuple(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder, .gguf file, or smollm2-135m")
    add_output(parser)
    parser.add_argument(
        "--max-perplexity-increase", metavar="P", type=share, default=0.05,
        help="over the model as loaded, on kinds of text that it has not seen, as 5%% or 0.05 (default 5%%)",
    )  # fmt: skip
    parser.add_argument("--min-tokens-per-s", metavar="N", type=positive, help="new tokens, 64 of prompt included")
    parser.add_argument("--max-memory", metavar="MB", type=positive, help="at the peak of the process that runs it")
    parser.add_argument("--minutes", metavar="M", type=positive, help="let one pruned width learn for so long")
    parser.add_argument(
        "--widths", metavar="H/N,H/N", type=widths, help="heads and neurons to remove (0/0.1,0.1/0.1,0.2/0.2,0.3/0.3)"
    )
    parser.add_argument("--calibration", metavar="TEXT", default=SELF, help="as for prune (default: self)")
    parser.add_argument("--calibration-tokens", metavar="N", type=whole_number(1), default=8192, help="default 8192")
    parser.add_argument(
        "--text", metavar="TEXT", default=KINDS, help=f"kinds to judge by; every second one chooses (default {KINDS})"
    )
    parser.add_argument(
        "--eval-tokens", metavar="N", type=whole_number(2), default=4096, help="of each kind (default 4096)"
    )
    parser.add_argument("--threads", metavar="N", type=whole_number(1), help="threads (default: physical cores)")


def run(options: argparse.Namespace) -> None:
    from sentinel.api.optimizing import optimize, search_folder
    from sentinel.api.search import WIDTHS
    from sentinel.report.optimized import PAGE, RESULTS, tables_of
    from sentinel.report.terminal import print_table, stdout_console

    output = check_model_output(options.output, options.force, options.model)
    set_threads(options.threads)
    place = search_folder(output)
    with telling_what_is_kept(
        lambda: f"what was found is in {place}; the same command goes on: {command_again(options)}"
    ):
        found = optimize(
            options.model,
            options.output,
            max_perplexity_increase=options.max_perplexity_increase,
            min_tokens_per_s=options.min_tokens_per_s,
            max_memory=options.max_memory,
            minutes=options.minutes,
            widths=options.widths or WIDTHS,
            calibration=options.calibration,
            calibration_tokens=options.calibration_tokens,
            text=options.text,
            eval_tokens=options.eval_tokens,
            threads=options.threads,
            force=options.force,
        )
    console = stdout_console()
    console.print(found.choice.reason, markup=False, style="bold")
    for command in found.choice.commands:
        console.print(f"  {command}", markup=False, soft_wrap=True)
    for table in tables_of(found.results.results, found.kinds, found.choice):
        print_table(console, table.columns, table.rows, table.title)
        console.print(table.note, style="dim", markup=False)
    print(f"{output}\n{output / PAGE}\n{output / RESULTS}")
