"""How threads wait for each other inside a step: a barrier that spins, because a kernel call would cost more."""

from __future__ import annotations

from numba import njit

from .intrinsics import atomic_add, atomic_load, i64_view, pause, yield_core
from .layout import P_BARRIERS, Y_ARRIVED

# Looks before giving the core away between further ones. When another program takes a core, the awaited thread may need
# this one: 200 looks (a few microseconds) halve the step of 4,000 or 100,000 then, and cost nothing otherwise.
_SPINS = 200


@njit
def barrier(sync, private, n_thread):
    """Return when all ``n_thread`` threads are here. Arrivals are only ever counted up, so nothing needs resetting."""
    if n_thread == 1:
        return
    passed = i64_view(private + P_BARRIERS, 1)
    passed[0] += 1
    goal = passed[0] * n_thread
    atomic_add(sync + Y_ARRIVED, 1)
    spins = 0
    while atomic_load(sync + Y_ARRIVED) < goal:
        spins += 1
        if spins > _SPINS:
            yield_core()
        else:
            pause()
