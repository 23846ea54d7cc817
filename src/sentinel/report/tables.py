"""Rows of results as tables of text, one per suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sentinel.measure.results import Result
from sentinel.report.cells import engine_name
from sentinel.report.findings import finding
from sentinel.report.sections import SECTIONS, SPEEDUP, Section, section_of


@dataclass(frozen=True)
class Table:
    """A heading, the one finding, a sentence about how the numbers were made, column names, rows of text."""

    suite: str
    title: str
    finding: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def tables(results: Sequence[Result]) -> list[Table]:
    """One table per suite that has results, in the order of a report. Columns that say nothing are left out."""
    order = [section.suite for section in SECTIONS]
    suites = sorted(dict.fromkeys(r.suite for r in results), key=lambda s: order.index(s) if s in order else len(order))
    return [_table(suite, [result for result in results if result.suite == suite]) for suite in suites]


def _table(suite: str, rows: Sequence[Result]) -> Table:
    section = section_of(suite)
    cells = {name: [cell(row) for row in rows] for name, cell in section.columns}
    names = [name for name, column in cells.items() if set(column) != {"–"}]
    named = [_with_reference(section, rows) if name == SPEEDUP[0] else name for name in names]
    lines = [[cells[name][i] for name in names] for i in range(len(rows))]
    return Table(suite, section.title, finding(suite, rows), section.note(rows), named, lines)


def _with_reference(section: Section, rows: Sequence[Result]) -> str:
    """The heading of the speed-ups, which names what they are over, once for all rows."""
    over = section.over or " or ".join(sorted({engine_name(row.speedup_over) for row in rows if row.speedup_over}))
    return f"{SPEEDUP[0]} over {over}"


def to_markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
