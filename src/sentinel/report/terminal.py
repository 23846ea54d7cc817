"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sentinel.measure.results import Result
from sentinel.report.tables import tables


class _Stdout(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stdout_console() -> Console:
    """Prints results to stdout; wide tables keep their columns when it is not a terminal."""
    console = _Stdout(highlight=False)
    if not console.is_terminal:
        console.width = 200
    return console


def new_table(columns: Sequence[str], title: str | None = None, *, left: int = 1) -> Table:
    """A table whose first ``left`` columns are words, and the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right")
    return table


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, *, left: int = 1
) -> None:
    """Print ``rows`` under ``columns``."""
    table = new_table(columns, title, left=left)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_tables(results: Sequence[Result]) -> None:
    """Print every suite's table to stdout."""
    console = stdout_console()
    for table in tables(results):
        print_table(console, table.columns, table.rows, table.title)
        console.print(table.finding, markup=False)
        console.print(table.note, style="dim", markup=False)
