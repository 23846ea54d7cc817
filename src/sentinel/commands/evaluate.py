"""``sentinel evaluate``: perplexity, agreement with a teacher, and variety of sampled text."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import add_machine, add_model, whole_number
from sentinel.commands.engine import add_engine, open_engine
from sentinel.commands.pruning import DEFAULT_TEXT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--text", metavar="TEXT", default=DEFAULT_TEXT,
        help=f"files, folders or built-in texts, with commas between (default {DEFAULT_TEXT}: their test splits)",
    )  # fmt: skip
    add_engine(parser)
    parser.add_argument("--context", metavar="N", type=whole_number(2), help="tokens seen (default 512, or all it can)")
    parser.add_argument("--stride", metavar="N", type=whole_number(1), help="default: half the context")
    parser.add_argument("--max-tokens", metavar="N", type=whole_number(1), help="stop after N tokens (default: all)")
    parser.add_argument("--teacher", metavar="MODEL", help="compare predictions with this model")
    parser.add_argument("--json", metavar="FILE", help="write environment and result to FILE")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.adapt.text.corpora import load_texts
    from sentinel.files import check_output_file
    from sentinel.formats.sources import load
    from sentinel.measure import environment
    from sentinel.measure.evaluation import evaluate_engine
    from sentinel.measure.results import ResultSet
    from sentinel.report.terminal import print_tables

    if options.json is not None:
        check_output_file(options.json)
    texts = load_texts(options.text, "test")  # refused before the model is opened
    opened = open_engine(options)
    result = evaluate_engine(
        opened,
        texts,
        context=options.context,
        stride=options.stride,
        max_tokens=options.max_tokens,
        teacher=load(options.teacher, device=options.device) if options.teacher is not None else None,
        width=(options.heads or 0.0, options.neurons or 0.0),
    )
    results = ResultSet(environment.describe(options.device), [result])
    if options.json is not None:
        results.write(options.json)
    print_tables(results.results)
