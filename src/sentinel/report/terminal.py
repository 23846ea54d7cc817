"""Tables of results in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sentinel.measure.results import Result
from sentinel.report.tables import tables


def print_tables(results: Sequence[Result]) -> None:
    """Print every suite's table to stdout; wide ones keep their columns when stdout is not a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    for table in tables(results):
        drawn = Table(box=box.SIMPLE_HEAD, title=table.title, title_justify="left", title_style="bold")
        for index, column in enumerate(table.columns):
            drawn.add_column(column, justify="left" if index == 0 else "right")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
        console.print(table.note, style="dim", markup=False)
