"""Progress of long work, on stderr; silent when asked to be or when stderr is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

ESTIMATE_SECONDS = 3600.0  # steps may take minutes, and two of them tell the time left

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line for the person at the terminal (stderr); nothing with ``-q``."""
    if not console.quiet:
        console.print(message, markup=False, soft_wrap=True)


def _bar(*, transient: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    remaining = TimeRemainingColumn()
    return Progress(*columns, remaining, console=console, transient=transient, speed_estimate_period=ESTIMATE_SECONDS)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield ``items`` under a progress bar with the time left."""
    with _bar(transient=True) as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def counting(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar around work that calls the yielded function ``total`` times."""
    with _bar(transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def working(description: str) -> Iterator[None]:
    """A spinner around work whose length is not known."""
    if console.is_terminal:
        with console.status(description):
            yield
    else:
        say(description)
        yield


@contextmanager
def progress_bar(description: str, total: float) -> Iterator[Callable[[float, str], None]]:
    """A bar for work that tells by itself how far it is: call with what is done of ``total``, and what to say."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)
