"""``sentinel report``: measure the model here and write HTML, Markdown and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from sentinel.commands.arguments import (
    add_force,
    add_machine,
    add_model,
    command_again,
    load_model,
    telling_what_is_kept,
)
from sentinel.commands.suite_options import add_resume, add_suite_options, given_options
from sentinel.errors import InputError


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
    from sentinel.api.measuring import report
    from sentinel.api.model import Model
    from sentinel.measure.results import ResultSet
    from sentinel.report.render import RESULTS, write_report
    from sentinel.report.terminal import print_tables

    own = folder / RESULTS
    if options.source:
        results = ResultSet.read(options.source)
        write_report(results, folder, replace)
    else:
        earlier = ResultSet.read(options.resume) if options.resume else None
        before = own.stat().st_mtime_ns if own.exists() else None

        def what_is_kept() -> str:
            written = own.exists() and own.stat().st_mtime_ns != before
            if earlier is None and not written:
                return f"nothing was measured to its end, and {folder} is as it was"
            file = str(own) if own.exists() else options.resume
            return f"what was measured is in {file}; go on with: {command_again(options, '--resume', file)}"

        with telling_what_is_kept(what_is_kept):
            results = report(
                Model(load_model(options), options.model),
                folder,
                random_weights=options.random_weights,
                threads=options.threads,
                quick=options.quick,
                force=replace,
                resume=earlier,
                **given_options(options),
            )
    print_tables(results.results)
    print(f"\n{folder / 'report.html'}\n{folder / 'report.md'}\n{own}")


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
