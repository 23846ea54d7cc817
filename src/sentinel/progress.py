"""Progress of long work, on stderr: bars on a terminal, elsewhere a line every half minute; nothing with ``-q``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

LINE_SECONDS = 30.0  # off a terminal, nobody waits longer for a sign of life
ESTIMATE_SECONDS = 3600.0  # steps may take minutes, and two of them tell the time left


class _Stderr(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads along any more; the work goes on."""
        self.quiet = True


console = _Stderr(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line for the person at the terminal (stderr); nothing with ``-q``."""
    if not console.quiet:
        console.print(message, markup=False, soft_wrap=True)


@dataclass(eq=False)
class Task:
    """Work under way: ``done`` of ``total``, which are steps if ``counted`` and else a share; None: nobody knows.

    ``first`` was done before it ``started``; ``stamp`` is when ``done`` last changed (seconds of the board's clock).
    """

    description: str
    total: float | None
    counted: bool
    first: float
    started: float
    done: float = field(init=False)
    stamp: float = field(init=False)
    bar: TaskID | None = None

    def __post_init__(self) -> None:
        self.done, self.stamp = self.first, self.started

    @property
    def steps(self) -> str:
        """``3 of 7``; empty where steps are not counted."""
        return f"{self.done:.0f} of {self.total:.0f}" if self.counted and self.total else ""

    def told(self) -> str:
        """What it is and how far."""
        if not self.total:
            return self.description
        share = f"{self.done / self.total:.0%}"
        return f"{self.description}: {f'{self.steps} ({share})' if self.counted else share}"

    def seconds_left(self, now: float) -> float | None:
        """At the speed so far; None before the first step is done. A step that takes longer puts off none but itself."""
        if not self.total or self.done <= self.first:
            return None
        pace = (self.stamp - self.started) / (self.done - self.first)
        left = self.total - self.done
        after_this = max(0.0, left - 1) if self.counted else 0.0
        return max(pace * after_this, pace * left - (now - self.stamp))


class Board:
    """What is under way, the outermost first: one display of bars, or one line for all of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tasks: list[Task] = []
        self._told = clock()
        self._lock = threading.RLock()
        self._bars: Progress | None = None
        self._ended: threading.Event | None = None

    def begin(self) -> None:
        """Count the half minute from now."""
        self._told = self._clock()

    @contextmanager
    def task(
        self, description: str, total: float | None, *, counted: bool = True, first: float = 0.0
    ) -> Iterator[Task]:
        """Work that is under way while the block runs."""
        task = Task(description, total, counted, first, self._clock())
        with self._lock:
            self._tasks.append(task)
            self._show(task)
        try:
            yield task
        finally:
            with self._lock:
                self._tasks.remove(task)
                self._hide(task)

    def update(self, task: Task, done: float, description: str | None = None) -> None:
        """``done`` of the task's total is done."""
        with self._lock:
            task.done, task.stamp = done, self._clock()
            task.description = task.description if description is None else description
            if self._bars is not None and task.bar is not None:
                self._bars.update(task.bar, completed=done, description=task.description, steps=task.steps)
            self.tick()

    def tick(self) -> None:
        """Off a terminal: say how far everything is, if that was not said for half a minute."""
        with self._lock:
            now = self._clock()
            if self._ended is not None and self._tasks and now - self._told >= LINE_SECONDS:
                self._told = now
                say(self._line(now))

    def _line(self, now: float) -> str:
        """``Planning: 3 of 7 (43%), Compensating: 12 of 30 (40%); 4:10 so far, about 5:30 left``."""
        outer = self._tasks[0]
        lefts = ((task, task.seconds_left(now)) for task in self._tasks)
        known, left = next(((task, left) for task, left in lefts if left is not None), (outer, None))
        of = "" if known is outer else f" of {known.description}"
        end = "" if left is None else f", about {_minutes(left)} left{of}"
        return f"{', '.join(task.told() for task in self._tasks)}; {_minutes(now - outer.started)} so far{end}"

    def _show(self, task: Task) -> None:
        if len(self._tasks) == 1 and not console.quiet:
            if console.is_interactive and console.file.isatty():
                self._bars = _bars()
                self._bars.start()
            else:
                self._ended = threading.Event()
                threading.Thread(target=self._watch, args=(self._ended,), daemon=True).start()
        if self._bars is not None:
            task.bar = self._bars.add_task(
                task.description, total=task.total, completed=int(task.done), steps=task.steps
            )

    def _hide(self, task: Task) -> None:
        if self._bars is not None and task.bar is not None:
            self._bars.remove_task(task.bar)
        if self._tasks:
            return
        if self._bars is not None:
            self._bars.stop()
        if self._ended is not None:
            self._ended.set()
        self._bars = self._ended = None

    def _watch(self, ended: threading.Event) -> None:
        """Tell of a step that takes long, too."""
        while not ended.wait(max(0.1, self._told + LINE_SECONDS - self._clock())):
            self.tick()


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[steps]}"), TimeElapsedColumn())
    remaining = TimeRemainingColumn()
    return Progress(*columns, remaining, console=console, transient=True, speed_estimate_period=ESTIMATE_SECONDS)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


board = Board()


def begin(*, quiet: bool) -> None:
    """Start a command: whether it says anything on stderr, and from when on it is waited for."""
    console.quiet = quiet
    board.begin()


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield ``items``; each one is done when the next is asked for."""
    with board.task(description, total) as task:
        for number, item in enumerate(items, 1):
            yield item
            board.update(task, number)


@contextmanager
def counting(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Work that calls the yielded function ``total`` times."""
    with board.task(description, total) as task:
        yield lambda: board.update(task, task.done + 1)


@contextmanager
def working(description: str) -> Iterator[None]:
    """Work whose length is not known; off a terminal its name is said at once."""
    if not console.is_interactive:
        say(description)
    with board.task(description, None):
        yield


@contextmanager
def progress_bar(description: str, *, done: float) -> Iterator[Callable[[float, str], None]]:
    """Work that tells by itself which share of it is done, and what to say: ``done`` of it is already."""
    with board.task(description, 1.0, counted=False, first=done) as task:
        yield lambda share, text: board.update(task, share, text)
