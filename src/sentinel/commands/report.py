"""``sentinel report``: measure the model here and write HTML, Markdown and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.arguments import add_machine, add_model, load_model
from sentinel.commands.bench import add_resume, add_suite_options, given_options

if TYPE_CHECKING:
    from sentinel.measure.results import ResultSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default="smollm2-135m")
    parser.add_argument("-o", "--output", metavar="DIR", default="report", help="folder to write (default report)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes, and no pruning for quality")
    parser.add_argument(
        "--grouped-kv", dest="expand_kv", action="store_false", help="prune whole K/V groups, not single heads"
    )
    parser.add_argument("--from", dest="source", metavar="FILE", help="draw a results file again, measure nothing")
    add_resume(parser)
    add_suite_options(parser.add_argument_group("options of suites", "for those that take them; else the suite's own"))
    add_machine(parser)


def is_report(folder: Path) -> bool:
    """True for a folder that holds a report, which may be replaced."""
    return (folder / "results.json").exists()


def run(options: argparse.Namespace) -> None:
    from sentinel.files import check_output_folder

    folder = check_output_folder(options.output, is_report)
    from sentinel.measure.results import ResultSet
    from sentinel.report.render import write_report
    from sentinel.report.terminal import print_tables

    results = ResultSet.read(options.source) if options.source else measure(options, folder)
    folder.mkdir(exist_ok=True)
    write_report(results, folder)
    print_tables(results.results)
    print(f"\n{folder / 'report.html'}\n{folder / 'report.md'}\n{folder / 'results.json'}")


def measure(options: argparse.Namespace, folder: Path) -> ResultSet:
    """Run the suites of the report; what is finished is in the folder's ``results.json``, to go on from."""
    from sentinel.measure.results import ResultSet
    from sentinel.measure.runner import run_suites
    from sentinel.measure.suites import SUITES

    earlier = ResultSet.read(options.resume) if options.resume else None
    loaded = load_model(options)
    judged = loaded.weights == "real" and loaded.tokenizer is not None
    given = {"expand_kv": options.expand_kv, **given_options(options)}
    suites = {
        suite.name: {name: value for name, value in given.items() if name in suite.options}
        for suite in SUITES.values()
        if suite.in_report and (judged or not suite.needs_text)
    }

    def keep(results: ResultSet) -> None:
        folder.mkdir(exist_ok=True)
        results.write(folder / "results.json")

    return run_suites(
        loaded,
        suites,
        source=options.model,
        random_weights=options.random_weights,
        threads=options.threads,
        quick=options.quick,
        resume=earlier,
        keep=keep,
    )
