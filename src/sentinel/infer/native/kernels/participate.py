"""The one function that `program` calls: thread 0 starts a pass with it, the others wait in it for passes."""

from __future__ import annotations

from typing import Any

from numba import njit

from .forward import forward
from .intrinsics import atomic_add, atomic_exchange, atomic_load, i64_view, pause
from .layout import P_JOBS, Y_JOB, Y_PARKED, S
from .plan import make_plan
from .stream import stream
from .sync import barrier

_N_FIELD, _THREADS, _SYNC, _PIECES = int(S.N_FIELD), int(S.THREADS), int(S.SYNC), int(S.PIECES)
_PRIVATE, _PRIVATE_STRIDE = int(S.PRIVATE), int(S.PRIVATE_STRIDE)
_BARE: dict[str, Any] = {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}  # `program` calls the machine code itself


@njit
def _take_part(st, state, thread):
    if st[_PIECES] == 0:
        forward(state, thread)
    else:
        stream(st, thread)
        barrier(st[_SYNC], st[_PRIVATE] + thread * st[_PRIVATE_STRIDE], st[_THREADS])


@njit(**_BARE)
def participate(state, thread, spins):
    """Take part in passes; releases the interpreter lock.

    Thread 0 starts a pass and returns 0 when it is done; if workers sleep it returns a bit per sleeping worker instead,
    and must be called again, with ``spins`` -1, after waking them. The others work until no pass came for ``spins``
    looks, and then return to sleep.
    """
    st = i64_view(state, _N_FIELD)
    sync = st[_SYNC]
    if thread == 0:
        if spins >= 0:
            if st[_PIECES] == 0:
                make_plan(st)
            atomic_add(sync + Y_JOB, 1)
            sleeping = 0
            for t in range(1, st[_THREADS]):
                if atomic_exchange(sync + Y_PARKED + 64 * t, 0):
                    sleeping |= 1 << t
            if sleeping:
                return sleeping
        _take_part(st, state, 0)
        return 0
    done = i64_view(st[_PRIVATE] + thread * st[_PRIVATE_STRIDE] + P_JOBS, 1)
    idle = 0
    while True:
        if atomic_load(sync + Y_JOB) > done[0]:
            done[0] += 1
            _take_part(st, state, thread)
            idle = 0
            continue
        idle += 1
        if idle < spins:
            pause()
            continue
        # Say so before sleeping, then look once more: a pass begun meanwhile either saw it and will wake us, or not.
        atomic_exchange(sync + Y_PARKED + 64 * thread, 1)
        if atomic_load(sync + Y_JOB) == done[0] or atomic_exchange(sync + Y_PARKED + 64 * thread, 0) == 0:
            return 0
        idle = 0
