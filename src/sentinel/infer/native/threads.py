"""The threads that take part in a step: kept alive, spinning for a moment between steps, then asleep.

A fork and join per matrix would cost more than the matrix at batch 1, so each worker enters compiled code once and
waits there for the next pass; after about a millisecond without one it goes to sleep and must be woken.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from .program import Program, program

MAX_THREADS = 62  # a bit for each in the integer by which a pass says who sleeps
_SPINS = 20_000  # looks for a new pass before sleeping; about a millisecond

P = ParamSpec("P")
R = TypeVar("R")


class Memory(Protocol):
    """All that passes read and write."""

    state: Any

    def reset_threads(self) -> None:
        """Forget how far threads have come: none of them is in a pass, or waits for one."""
        ...


class CallerLock:
    """Lets one Python thread in at a time, as often as it likes. A child process finds it open after a fork."""

    def __init__(self) -> None:
        self.reset()
        _survivors.add(self)

    def reset(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class Shared(Protocol):
    """What several Python threads may call: ``callers`` lets in one of them."""

    callers: CallerLock


S = TypeVar("S", bound=Shared)


def one_at_a_time(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that waits until no other Python thread is in one of the same object."""

    @functools.wraps(method)
    def alone(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.callers:
            return method(self, *args, **kwargs)

    return alone


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
        _survivors.add(self)

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


_survivors: weakref.WeakSet[CallerLock | Team] = weakref.WeakSet()


def _after_fork() -> None:
    for one in _survivors:
        one.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
