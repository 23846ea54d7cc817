"""``sentinel evaluate``: perplexity, agreement with a teacher, and variety of sampled text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sentinel.commands.arguments import add_machine, add_model, names, whole_number
from sentinel.commands.engine import add_engine, open_engine
from sentinel.commands.pruning import DEFAULT_TEXT
from sentinel.errors import InputError

if TYPE_CHECKING:
    from sentinel.measure.results import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--text", metavar="TEXT",
        help=f"files, folders, built-in texts or kinds of text, with commas between (default {DEFAULT_TEXT}: their test "
        "splits); judges: all kinds that nothing learns from, each alone and their geometric mean",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", metavar="T,T", type=names,
        help="zero-shot tasks instead of a text, made of texts that nothing learns from: last-word, agreement, definition",
    )  # fmt: skip
    parser.add_argument("--items", metavar="N", type=whole_number(2), help="of each task (default 200)")
    add_engine(parser)
    parser.add_argument("--context", metavar="N", type=whole_number(2), help="tokens seen (default 512, or all it can)")
    parser.add_argument("--stride", metavar="N", type=whole_number(1), help="default: half the context")
    parser.add_argument(
        "--max-tokens",
        metavar="N",
        type=whole_number(1),
        help="stop after N tokens (default: all), with judges of each kind",
    )
    parser.add_argument("--teacher", metavar="MODEL", help="compare predictions with this model")
    parser.add_argument("--json", metavar="FILE", help="write environment and result to FILE")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.adapt.text.corpora import load_texts
    from sentinel.adapt.text.judges import ALL_JUDGES
    from sentinel.files import check_output_file
    from sentinel.formats.sources import load
    from sentinel.measure import environment
    from sentinel.measure.evaluation import evaluate_engine
    from sentinel.measure.results import ResultSet
    from sentinel.report.terminal import print_tables

    if options.json is not None:
        check_output_file(options.json)
    if options.tasks is not None:
        _run_tasks(options)
        return
    if options.items is not None:
        raise InputError("--items are of --tasks; name tasks, or leave it out")
    text = DEFAULT_TEXT if options.text is None else options.text
    texts = load_texts(text, "test")  # refused before the model is opened
    opened = open_engine(options)
    teacher = load(options.teacher, device=options.device) if options.teacher is not None else None
    by_kind = text == ALL_JUDGES
    found = [
        evaluate_engine(
            opened,
            judges,
            context=options.context,
            stride=options.stride,
            max_tokens=options.max_tokens,
            teacher=teacher,
            width=(options.heads or 0.0, options.neurons or 0.0),
        )
        for judges in ([[text] for text in texts] if by_kind else [texts])
    ]
    results = ResultSet(environment.describe(options.device), found)
    if options.json is not None:
        results.write(options.json)
    if by_kind:
        _print_kinds(results.results)
    else:
        print_tables(results.results)


def _run_tasks(options: argparse.Namespace) -> None:
    from sentinel.adapt.text.choices import task_items
    from sentinel.measure import environment
    from sentinel.measure.results import ResultSet
    from sentinel.measure.zero_shot import DEFAULT_ITEMS, evaluate_task
    from sentinel.report.terminal import print_tables

    for name in ("text", "context", "stride", "max_tokens", "teacher"):
        if getattr(options, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is of judging a text, and not of --tasks; leave one of them out"
            )
    for name in options.tasks:
        task_items(name, 1)  # refused before the model is opened
    opened = open_engine(options)
    width = (options.heads or 0.0, options.neurons or 0.0)
    found = [evaluate_task(opened, name, options.items or DEFAULT_ITEMS, width) for name in options.tasks]
    results = ResultSet(environment.describe(options.device), found)
    if options.json is not None:
        results.write(options.json)
    print_tables(results.results)


def _print_kinds(results: Sequence[Result]) -> None:
    """A row for each kind of text, and the geometric means over them."""
    from sentinel.adapt.text.judges import JUDGES
    from sentinel.measure.evaluation import geometric_mean
    from sentinel.report.cells import number, over_dense, perplexity, times
    from sentinel.report.terminal import print_table, stdout_console

    rows = [
        [row.text or "", JUDGES[row.text or ""].what, number(row.tokens, 0), perplexity(row), over_dense(row)]
        for row in results
    ]
    means = [geometric_mean([getattr(row, name) for row in results]) for name in ("perplexity", "perplexity_ratio")]
    rows.append(["geometric mean", "", "", number(means[0], 2), times(means[1])])
    columns = ["kind", "what", "tokens", "perplexity", "over teacher"]
    title = f"{results[0].model}, {results[0].engine}: kinds of text that nothing learns from"
    print_table(stdout_console(), columns, rows, title)
