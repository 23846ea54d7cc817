"""The input of a matrix: rows of float32, or of int16 with one scale a row and a sum per 32 columns."""

from __future__ import annotations

import numpy as np
from numba import njit

from .intrinsics import f32_view, i16_view, nearest, never_inlined
from .layout import S
from .vector import FAST

X, X_STRIDE = int(S.INPUT), int(S.INPUT_STRIDE)
SCALE, SUM, SUM_STRIDE = int(S.INPUT_SCALE), int(S.INPUT_SUM), int(S.INPUT_SUM_STRIDE)
_ZERO = np.float32(0)


@njit(**FAST)
def copy_row(x_address, y_address, n, n_padded):
    """Copy ``n`` float32 and append zeros up to ``n_padded``."""
    x, y = f32_view(x_address, n), f32_view(y_address, n_padded)
    for i in range(n):
        y[i] = x[i]
    for i in range(n, n_padded):
        y[i] = _ZERO


@njit(**FAST)
def quantise_row(x_address, q_address, scale_address, sum_address, n, n_padded, top):
    """Round one row to int16 with one scale: x = scale * q, \\|q\\| <= top.

    Zeros follow up to ``n_padded``; ``sum`` gets the sum of q per 32 columns in float32 (exact), for int4.
    """
    never_inlined()
    x, q = f32_view(x_address, n), i16_view(q_address, n_padded)
    sums = f32_view(sum_address, n_padded // 32)
    peak = _ZERO
    for i in range(n):
        peak = max(peak, abs(x[i]))
    f32_view(scale_address, 1)[0] = peak / top
    factor = top / peak if peak > _ZERO else _ZERO
    for i in range(n):
        q[i] = np.int16(nearest(x[i] * factor))
    for i in range(n, n_padded):
        q[i] = np.int16(0)
    for g in range(n_padded // 32):
        total = np.int32(0)
        for i in range(32):
            total += np.int32(q[g * 32 + i])
        sums[g] = np.float32(total)


@njit(**FAST)
def put_floats(st, n, x, row):
    """Make row ``row`` of the input from ``n`` float32 values at ``x``, which may be there already."""
    target = st[X] + row * st[X_STRIDE]
    if x != target:
        copy_row(x, target, n, (n + 31) // 32 * 32)


@njit(**FAST)
def put_rounded(st, n, x, row, top):
    """Make row ``row`` of the input from ``n`` float32 values at ``x``, rounded to whole numbers of at most ``top``."""
    target, sums = st[X] + row * st[X_STRIDE], st[SUM] + row * st[SUM_STRIDE]
    quantise_row(x, target, st[SCALE] + row * 4, sums, n, (n + 31) // 32 * 32, top)
