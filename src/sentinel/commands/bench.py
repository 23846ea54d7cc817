"""``sentinel bench``: measure one suite and print its table."""

from __future__ import annotations

import argparse
from pathlib import Path

from sentinel.commands.arguments import (
    add_dtype,
    add_machine,
    add_model,
    command_again,
    load_model,
    telling_what_is_kept,
)
from sentinel.commands.suite_options import add_resume, add_suite_options, given_options
from sentinel.measure.suites import SUITES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "; ".join(f"{suite.name}: {suite.summary}" for suite in SUITES.values())
    parser.add_argument("suite", metavar="SUITE", choices=SUITES, help=about)
    add_model(parser, default="smollm2-135m")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    parser.add_argument("--json", metavar="FILE", help="write environment, results and raw samples to FILE")
    add_resume(parser)
    add_dtype(parser, "fp32, in which levels 0 and 1, and 2 on accelerators, then compute")
    add_suite_options(parser.add_argument_group("options of suites", "what is not given is the suite's own"))
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.files import check_output_file, is_stream

    if options.json is not None:
        check_output_file(options.json)
    from sentinel.api.measuring import bench
    from sentinel.api.model import Model
    from sentinel.measure.results import ResultSet
    from sentinel.report.terminal import print_tables

    earlier = ResultSet.read(options.resume) if options.resume else None
    given = given_options(options)
    kept = earlier is not None
    in_file = options.json is not None and not is_stream(options.json)

    def keep(found: ResultSet) -> None:
        nonlocal kept
        if in_file:
            found.write(options.json)
            kept = True

    def what_is_kept() -> str:
        if not in_file:
            return "nothing is kept, since --json names no file to keep it in"
        if not kept:
            return f"nothing was measured to its end, and {options.json} is as it was"
        file = options.json if Path(options.json).exists() else options.resume
        return f"what was measured is in {file}; go on with: {command_again(options, '--resume', file)}"

    with telling_what_is_kept(what_is_kept):
        found = bench(
            options.suite,
            Model(load_model(options), options.model),
            random_weights=options.random_weights,
            threads=options.threads,
            quick=options.quick,
            resume=earlier,
            keep=keep,
            **given,
        )
        if options.json is not None:
            found.write(options.json)
        print_tables(found.results)
