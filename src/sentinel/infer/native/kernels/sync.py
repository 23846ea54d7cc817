"""How threads share out work inside a step and wait for each other: a barrier that spins, because a kernel call would cost
more."""

from __future__ import annotations

from numba import njit

from .intrinsics import atomic_add, atomic_load, i64_view, nap, pause, yield_core
from .layout import P_BARRIERS, P_CLAIMS, Y_ARRIVED, Y_CLAIMED

# Looks before giving the core away between further ones. When another program takes a core, the awaited thread may need
# this one: 200 looks (a few microseconds) halve the step of 4,000 or 100,000 then, and cost nothing otherwise.
_SPINS = 200
# Then, after a few hundred microseconds, it sleeps: only to a core with nothing to run does the system move a thread that
# waits for another core. Beside a program that takes a core, GPT-2's shape in int8 then decodes 1.7 times as fast.
_YIELDS = 1000
_NAP = 20  # microseconds; the system adds about 50


@njit
def next_item(sync, private, alone, n_item, item, thread, n_thread):
    """The item of a loop that this thread does after ``item`` (-1: its first), or -1 when none is left.

    Threads claim items one by one, so that a thread that loses its core for a while leaves its share to the others; a
    barrier follows the loop. With one token (``alone``) an item is too short for that: each thread has an equal share,
    which it reads in one stream.
    """
    if alone:
        following = item + 1 if item >= 0 else n_item * thread // n_thread
        return following if following < n_item * (thread + 1) // n_thread else -1
    before = i64_view(private + P_CLAIMS, 1)
    item = atomic_add(sync + Y_CLAIMED, 1) - before[0]
    if item < n_item:
        return item
    before[0] += n_item + n_thread  # every thread claims one that there is not
    return -1


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
        if spins > _SPINS + _YIELDS:
            nap(_NAP)
        elif spins > _SPINS:
            yield_core()
        else:
            pause()
