"""Python threads that share an engine: one at a time, and none that a fork left behind."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Survivor(Protocol):
    """What begins anew in a child process."""

    def reset(self) -> None: ...


_survivors: weakref.WeakSet[Survivor] = weakref.WeakSet()


def reset_after_fork(one: Survivor) -> None:
    """Have ``one`` reset in every child process, as long as it lives."""
    _survivors.add(one)


class CallerLock:
    """Lets one Python thread in at a time, as often as it likes. A child process finds it open after a fork."""

    def __init__(self) -> None:
        self.reset()
        reset_after_fork(self)

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


def _after_fork() -> None:
    for one in _survivors:
        one.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
