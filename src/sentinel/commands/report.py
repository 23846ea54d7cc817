"""``sentinel report``: measure the model here and write HTML, Markdown and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.arguments import (
    add_force,
    add_machine,
    add_model,
    command_again,
    load_model,
    telling_what_is_kept,
)
from sentinel.commands.bench import add_resume, add_suite_options, given_options
from sentinel.errors import InputError

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
    again = parser.add_mutually_exclusive_group()
    add_resume(again)
    add_force(again)
    add_suite_options(parser.add_argument_group("options of suites", "for those that take them; else the suite's own"))
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    folder, replace = _output(options)
    from sentinel.measure.results import ResultSet
    from sentinel.report.render import write_report
    from sentinel.report.terminal import print_tables

    if options.source:
        results = ResultSet.read(options.source)
    else:
        results, replace = measure(options, folder, replace), True
    write_report(results, folder, replace)
    print_tables(results.results)
    print(f"\n{folder / 'report.html'}\n{folder / 'report.md'}\n{folder / 'results.json'}")


def _output(options: argparse.Namespace) -> tuple[Path, bool]:
    """The folder of the report, and whether a report that stands there is replaced: with ``--force``, or because the new
    one is made of its results."""
    from sentinel.files import check_output_folder
    from sentinel.report.render import REPORT_FILES, RESULTS

    folder = Path(options.output)
    own = folder / RESULTS
    read = [Path(file) for file in (options.resume, options.source) if file is not None]
    replace = options.force or (own.exists() and any(file.exists() and file.samefile(own) for file in read))
    if own.exists() and not replace:
        raise InputError(
            f"{folder} holds a report; go on with it by --resume {own}, replace it by --force, or name another folder by -o"
        )
    return check_output_folder(folder, replace, REPORT_FILES), replace


def measure(options: argparse.Namespace, folder: Path, replace: bool) -> ResultSet:
    """Run the suites of the report; what is finished is in the folder's ``results.json``, to go on from."""
    from sentinel.files import write_folder
    from sentinel.measure.results import ResultSet
    from sentinel.measure.runner import run_suites
    from sentinel.measure.suites import SUITES
    from sentinel.report.render import RESULTS

    earlier = ResultSet.read(options.resume) if options.resume else None
    loaded = load_model(options)
    judged = loaded.weights == "real" and loaded.tokenizer is not None
    given = {"expand_kv": options.expand_kv, **given_options(options)}
    suites = {
        suite.name: {name: value for name, value in given.items() if name in suite.options}
        for suite in SUITES.values()
        if suite.in_report and (judged or not suite.needs_text)
    }

    kept = earlier is not None

    def keep(results: ResultSet) -> None:
        nonlocal replace, kept
        with write_folder(folder, replace) as temporary:
            results.write(temporary / RESULTS)
        replace = kept = True

    def what_is_kept() -> str:
        if not kept:
            return f"nothing was measured to its end, and {folder} is as it was"
        file = str(folder / RESULTS) if (folder / RESULTS).exists() else options.resume
        return f"what was measured is in {file}; go on with: {command_again(options, '--resume', file)}"

    with telling_what_is_kept(what_is_kept):
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
