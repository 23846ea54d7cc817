"""What surrounds a command: standard streams that can always be written to, and signals that end it in good order."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = 3.0  # launchers send a signal twice; who sends one later wants an end at once
PLAIN = str.maketrans(
    {"–": "-", "—": "-", "±": "+-", "→": "->", "×": "x", "·": ".", "…": "...", "─": "-", "░": ".", "▒": ":", "▓": "*",
     "█": "#", "²": "2", "‘": "'", "’": "'", "“": '"', "”": '"'}
)  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Characters that a terminal's encoding lacks, by such as it has."""
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end].translate(PLAIN)
    return found.encode("ascii", "replace").decode(), error.end


codecs.register_error("sentinel-plain", _plain)


@contextmanager
def command_line() -> Iterator[None]:
    """Run a command inside: closed streams are opened on nothing, no character fails to print, and SIGTERM and SIGHUP
    interrupt as Ctrl-C does, unless they are ignored (nohup)."""
    _open_streams()
    before = {number: signal.getsignal(number) for number in _signals()}
    hook = sys.unraisablehook
    on_signal = _Interrupt()
    try:
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, on_signal)
        if before:
            sys.unraisablehook = on_signal.lost
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        sys.unraisablehook = hook


def _signals() -> list[int]:
    if threading.current_thread() is not threading.main_thread():
        return []
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Interrupt:
    """Raises `KeyboardInterrupt` at the first signal and lets what follows clean up."""

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            raise KeyboardInterrupt
        if now - self._first > GRACE_SECONDS:
            os._exit(130)

    def lost(self, unraisable: Any) -> None:
        """An interrupt that a callback from compiled code swallowed comes again, without a word."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._first = None
            signal.raise_signal(signal.SIGINT)
        else:
            sys.__unraisablehook__(unraisable)


def _open_streams() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest free one: no other file gets the number of a stream
            setattr(sys, name, open(handle, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sentinel-plain")


def leave_stdout() -> None:
    """Nobody reads standard output any more: what is still to be written there goes nowhere."""
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, 1)
    os.close(handle)
