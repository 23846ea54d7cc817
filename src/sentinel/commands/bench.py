"""``sentinel bench``: measure one suite and print its table."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import (
    add_machine,
    add_model,
    add_workload,
    check_workload,
    listed,
    load_model,
    whole_number,
)

SUITES = ("attention", "decode")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", choices=SUITES, help=", ".join(SUITES))
    add_model(parser, default="smollm2-135m")
    add_workload(parser)
    parser.add_argument(
        "--levels", metavar="L,L", type=listed(whole_number(0)), default=(0, 1), help="levels to run (default 0,1)"
    )
    parser.add_argument(
        "--lengths",
        metavar="N,N",
        type=listed(whole_number(1)),
        help="sequence lengths of the attention suite (default 32,64,128,256,512)",
    )
    parser.add_argument("--json", metavar="FILE", help="write environment, results and raw samples to FILE")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.files import require_writable_parent

    if options.json:
        from pathlib import Path

        require_writable_parent(Path(options.json))
    from sentinel.infer.engines import check_level
    from sentinel.measure import bench, environment
    from sentinel.measure.results import ResultSet
    from sentinel.report.terminal import print_tables

    for level in options.levels:
        check_level(level)
    loaded = load_model(options)
    place = environment.describe(options.device)
    if options.suite == "attention":
        lengths = options.lengths or bench.ATTENTION_LENGTHS
        results = bench.bench_attention(loaded, lengths, batch=options.batch, rounds=options.rounds)
    else:
        check_workload(options, loaded)
        settings = bench.DecodeSettings(
            options.levels, options.batch, options.prompt_tokens, options.new_tokens, options.rounds
        )
        results = bench.bench_decode(
            loaded, settings, place.bandwidth_gb_s, source=options.model, random_weights=options.random_weights
        )
    found = ResultSet(place, results)
    if options.json:
        found.write(options.json)
    print_tables(found.results)
