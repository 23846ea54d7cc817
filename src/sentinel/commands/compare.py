"""``sentinel compare``: what changed between two results files by more than noise."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentinel.measure.compare import Comparison
    from sentinel.measure.results import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD.json", help="results file of the first run")
    parser.add_argument("new", metavar="NEW.json", help="results file of the second run")


def run(options: argparse.Namespace) -> None:
    from sentinel.measure.compare import compare
    from sentinel.measure.results import ResultSet

    for line in lines(compare(ResultSet.read(options.old), ResultSet.read(options.new))):
        print(line)


def lines(found: Comparison) -> list[str]:
    """The comparison in words, changes first."""
    from sentinel.measure.compare import MARGIN
    from sentinel.measure.results import FEWEST_ROUNDS

    said = [
        f"{'better' if change.better else 'worse'}: {describe(change.row)}: {change.quantity} {change.old:.3g} -> "
        f"{change.new:.3g}, outside {change.low:.3g} to {change.high:.3g}"
        for change in found.changes
    ]
    share = f" ({found.agreeing / found.compared:.0%})" if found.compared else ""
    said.append(
        f"{found.agreeing} of {found.compared} rows agree{share}: the new value lies in the old interval widened by "
        f"{MARGIN:.0%}"
    )
    if found.unknown:
        said.append(
            f"of {found.unknown} rows the old speed-up has no interval, so that nothing can be told; measure at least "
            f"{FEWEST_ROUNDS} rounds"
        )
    if found.references:
        ratios = [old / new for _, old, new in found.references]
        said.append(
            f"the references themselves ran at {min(ratios):.2f} to {max(ratios):.2f} times their old speed; the rows are "
            "ratios to them"
        )
    for which, rows in (("old", found.only_old), ("new", found.only_new)):
        if rows:
            suites = ", ".join(sorted({row.suite for row in rows}))
            said.append(f"{len(rows)} rows are only in the {which} file ({suites})")
    said += [f"the environments differ: {difference}" for difference in found.environment]
    return said


def describe(row: Result) -> str:
    """What a row measures, in a few words."""
    words = [row.suite, row.model, row.engine]
    if row.phase:
        words.append(row.phase)
    for value, unit in ((row.heads_pruned, "heads"), (row.neurons_pruned, "neurons")):
        if value:
            words.append(f"-{value:.0%} {unit}")
    if row.batch and row.batch > 1:
        words.append(f"batch {row.batch}")
    if row.prompt_tokens:
        words.append(f"{row.prompt_tokens} tokens")
    return " ".join(words)
