"""The threads that take part in a step: kept alive, spinning for a moment between steps, then asleep.

A fork and join per matrix would cost more than the matrix at batch 1, so each worker enters compiled code once and
waits there for the next pass; after about a millisecond without one it goes to sleep and must be woken.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

from sentinel.infer.callers import CallerLock, reset_after_fork

from .program import Program, program

MAX_THREADS = 62  # a bit for each in the integer by which a pass says who sleeps
_SPINS = 20_000  # looks for a new pass before sleeping; about a millisecond


class Memory(Protocol):
    """All that passes read and write."""

    state: Any

    def reset_threads(self) -> None:
        """Forget how far threads have come: none of them is in a pass, or waits for one."""
        ...


class Team:
    """``n_thread`` threads, the caller's included, that run passes described by the state in ``memory``.

    The workers start with the first pass, and anew in a child process after a fork, which they do not survive. They hold
    on to ``memory`` as long as they may look at it.
    """

    def __init__(self, memory: Memory, n_thread: int) -> None:
        self._program = program()
        self._memory = memory
        self._n_thread = n_thread
        self._lock = CallerLock()
        self._closed = False
        self.reset()
        reset_after_fork(self)

    def reset(self) -> None:
        """Begin without workers: at the start, and in a child process, which has none of its parent's."""
        if hasattr(self, "_finalizer"):
            self._finalizer.detach()
        self._wake = [threading.Semaphore(0) for _ in range(self._n_thread)]
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._memory.reset_threads()
        self._finalizer = weakref.finalize(self, _stop, self._stop, self._wake)

    def run(self) -> None:
        """One pass."""
        state = self._memory.state.ctypes.data
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads of this engine have ended")
            if self._n_thread > 1 and not self._threads:
                self._start(state)
            sleeping = self._program(state, 0, 0)
            if sleeping:
                for t, semaphore in enumerate(self._wake):
                    if sleeping >> t & 1:
                        semaphore.release()
                self._program(state, 0, -1)

    def close(self) -> None:
        """End the workers, after the pass that they are in."""
        with self._lock:
            self._closed = True
            self._finalizer()
            for thread in self._threads:
                thread.join()

    def _start(self, state: int) -> None:
        shared = (self._stop, self._memory)
        self._threads = [
            threading.Thread(target=_work, args=(self._program, state, t, self._wake[t], *shared), daemon=True)
            for t in range(1, self._n_thread)
        ]
        for thread in self._threads:
            thread.start()


def _work(run: Program, state: int, thread: int, wake: threading.Semaphore, stop: threading.Event, memory: Any) -> None:
    while not stop.is_set():
        run(state, thread, _SPINS)
        wake.acquire()


def _stop(stop: threading.Event, wake: list[threading.Semaphore]) -> None:
    stop.set()
    for semaphore in wake:
        semaphore.release()
