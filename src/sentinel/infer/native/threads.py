"""The threads that take part in a step: kept alive, spinning for a moment between steps, then asleep.

A fork and join per matrix would cost more than the matrix at batch 1, so each worker enters compiled code once and
waits there for the next pass; after about a millisecond without one it goes to sleep and must be woken.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from .program import Program, program

_SPINS = 20_000  # looks for a new pass before sleeping; about a millisecond


class Team:
    """``n_thread`` threads, the caller's included, that run passes described by the state at address ``state``.

    The workers hold on to ``memory``, all that the state points to, as long as they may look at it.
    """

    def __init__(self, state: int, n_thread: int, memory: Any) -> None:
        self._state = state
        self._program = program()
        self._memory = memory
        self._lock = threading.Lock()
        self._wake = [threading.Semaphore(0) for _ in range(n_thread)]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=_work, args=(self._program, state, t, self._wake[t], self._stop, memory), daemon=True
            )
            for t in range(1, n_thread)
        ]
        for thread in self._threads:
            thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._stop, self._wake)

    def run(self) -> None:
        """One pass."""
        with self._lock:
            sleeping = self._program(self._state, 0, 0)
            if sleeping:
                for t, semaphore in enumerate(self._wake):
                    if sleeping >> t & 1:
                        semaphore.release()
                self._program(self._state, 0, -1)

    def close(self) -> None:
        """End the workers."""
        self._finalizer()
        for thread in self._threads:
            thread.join()


def _work(run: Program, state: int, thread: int, wake: threading.Semaphore, stop: threading.Event, memory: Any) -> None:
    while not stop.is_set():
        run(state, thread, _SPINS)
        wake.acquire()


def _stop(stop: threading.Event, wake: list[threading.Semaphore]) -> None:
    stop.set()
    for semaphore in wake:
        semaphore.release()
