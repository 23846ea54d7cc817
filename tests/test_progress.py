"""What long work says: bars on a terminal, a line every half minute elsewhere, nothing with -q."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from sentinel import progress
from sentinel.progress import LINE_SECONDS, Board


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "board", Board(clock))
    monkeypatch.setattr(progress.console, "quiet", False)
    return clock


def work(clock, seconds):
    """A step of that many seconds."""
    clock.now += seconds


def test_off_a_terminal_a_line_tells_step_share_and_time_left_every_half_minute(clock, capsys):
    for _ in progress.track(range(10), "Calibrating", 10):
        work(clock, 12)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Calibrating: 3 of 10 (30%); 0:36 so far, about 1:24 left",
        "Calibrating: 6 of 10 (60%); 1:12 so far, about 0:48 left",
        "Calibrating: 9 of 10 (90%); 1:48 so far, about 0:12 left",
    ]


def test_short_work_says_nothing_and_leaves_no_blank_line(clock, capsys):
    for _ in progress.track(range(3), "Evaluating", 3):
        work(clock, 9)
    assert capsys.readouterr().err == ""


def test_many_short_pieces_of_work_are_told_of_together(clock, capsys):
    for number in range(6):
        for _ in progress.track(range(2), f"Piece {number}", 2):
            work(clock, 10)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and said[0].startswith("Piece 1: 1 of 2 (50%)")


def test_nested_work_is_one_line_with_the_time_left_of_all(clock, capsys):
    for _ in progress.track(range(4), "Planning", 4):
        for _ in progress.track(range(5), "Compensating", 5):
            work(clock, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Planning: 1 of 4 (25%), Compensating: 3 of 5 (60%); 0:32 so far, about 0:48 left",
        "Planning: 3 of 4 (75%), Compensating: 1 of 5 (20%); 1:04 so far, about 0:16 left",
    ]


def test_before_the_first_outer_step_the_time_left_is_that_of_the_inner_work(clock, capsys):
    with progress.counting("Cycles", 3):
        for _ in progress.track(range(10), "Compensating", 10):
            work(clock, 8)
    assert capsys.readouterr().err.splitlines()[0] == (
        "Cycles: 0 of 3 (0%), Compensating: 4 of 10 (40%); 0:32 so far, about 0:48 left of Compensating"
    )


def test_a_share_that_goes_on_from_an_earlier_run_is_extrapolated_from_what_this_run_did(clock, capsys):
    with progress.progress_bar("Recovering", done=0.5) as show:
        work(clock, 40)
        show(0.6, "Recovering, step 7")
    assert capsys.readouterr().err == "Recovering, step 7: 60%; 0:40 so far, about 2:40 left\n"


def test_a_step_that_takes_long_is_told_of_too(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(progress, "board", Board())
    monkeypatch.setattr(progress.console, "quiet", False)
    said = ""
    with progress.working("Compiling"):
        while said.count("\n") < 3:
            time.sleep(0.02)
            said += capsys.readouterr().err
    assert re.fullmatch(r"Compiling\n(Compiling; \d:\d\d so far\n)+", said)


def test_quiet_says_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.console, "quiet", True)
    with progress.working("Compiling"):
        for _ in progress.track(range(5), "Evaluating", 5):
            work(clock, LINE_SECONDS + 1)
    progress.board.tick()
    assert capsys.readouterr().err == ""


def test_an_interrupted_track_is_forgotten(clock, capsys):
    for item in progress.track(range(5), "Evaluating", 5):
        if item:
            break
    work(clock, 100)
    progress.board.tick()
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_nested_bars_and_keeps_none_of_them(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(progress, "board", Board())
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=100, highlight=False))
    for _ in progress.track(range(2), "Planning", 2):
        with progress.working("Compiling"):
            for _ in progress.track(range(2), "Compensating", 2):
                progress.board._bars.refresh()
    shown = screen.getvalue()
    assert "Planning" in shown and "Compensating" in shown and "Compiling" in shown and "1 of 2" in shown
    assert "\x1b[2K" in shown[-20:]  # the last thing that is done is to take the bars away
