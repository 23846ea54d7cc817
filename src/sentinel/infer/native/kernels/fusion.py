"""What late layers borrow: states that are kept as they pass, and fusions that add what is made of them."""

from __future__ import annotations

import numpy as np
from numba import njit

from .intrinsics import f32_view, float_bits
from .layout import F_DOWN, F_OTHER, F_OTHER_NORM, F_UP, MATRIX_FIELDS, N_ROW, P_SCORES, S
from .matrix import project, put_inputs, put_pair
from .sync import barrier
from .vector import FAST

_N_EMBD, _EPS, _SYNC = int(S.N_EMBD), int(S.EPS_BITS), int(S.SYNC)
_X, _X_STRIDE, _HIDDEN, _HIDDEN_STRIDE = int(S.X), int(S.X_STRIDE), int(S.HIDDEN), int(S.HIDDEN_STRIDE)


@njit(**FAST)
def keep(st, target, n, private, thread, n_thread):
    """Copy ``n`` rows of the residual stream to ``target``, if that is not 0."""
    if target == 0:
        return
    width = st[_N_EMBD]
    first, end = width * thread // n_thread, width * (thread + 1) // n_thread
    for r in range(n):
        source = f32_view(st[_X] + r * st[_X_STRIDE], width)
        copy = f32_view(target + r * st[_X_STRIDE], width)
        for k in range(first, end):
            copy[k] = source[k]
    barrier(st[_SYNC], private, n_thread)


@njit(**FAST)
def fuse(st, fusion, n, private, thread, n_thread):
    """Add to ``n`` rows of the residual stream what ``fusion`` makes of them and of the state that it reads."""
    other = fusion[F_OTHER]
    if other == 0:
        return
    down, up = fusion[F_DOWN : F_DOWN + MATRIX_FIELDS], fusion[F_UP : F_UP + MATRIX_FIELDS]
    low_rank = down[N_ROW] > 0
    first = down if low_rank else up
    norms = fusion[F_OTHER_NORM : F_OTHER_NORM + 4]
    eps, scratch = float_bits(np.int32(st[_EPS])), private + P_SCORES
    # With one token every thread makes the input for itself.
    start, end = n * thread // n_thread, n * (thread + 1) // n_thread
    if n == 1:
        start, end = 0, 1
    for r in range(start, end):
        offset = r * st[_X_STRIDE]
        put_pair(st, first, st[_X] + offset, other + offset, thread if n == 1 else r, norms, eps, scratch)
    if n > 1 or not low_rank:  # nobody may write the stream before all have read it
        barrier(st[_SYNC], private, n_thread)
    row0 = thread if n == 1 else 0
    if low_rank:
        project(st, down, row0, n, st[_HIDDEN], st[_HIDDEN_STRIDE], False, private, thread, n_thread)
        barrier(st[_SYNC], private, n_thread)
        put_inputs(st, up, n, st[_HIDDEN], st[_HIDDEN_STRIDE], private, thread, n_thread)
    project(st, up, row0, n, st[_X], st[_X_STRIDE], True, private, thread, n_thread)
    barrier(st[_SYNC], private, n_thread)
