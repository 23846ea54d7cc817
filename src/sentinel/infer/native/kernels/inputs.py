"""The input of a matrix: rows of float32, or of int8 with a scale and a sum per group of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .intrinsics import f32_view, float_bits, i8_view, i32_view, nearest, never_inlined
from .layout import S
from .vector import FAST

X, X_STRIDE = int(S.INPUT), int(S.INPUT_STRIDE)
SCALE, SUM, SUM_STRIDE = int(S.INPUT_SCALE), int(S.INPUT_SUM), int(S.INPUT_SUM_STRIDE)
_ZERO, _INFINITY = np.float32(0), np.float32(np.inf)
_TOP = np.float32(127)
_TINY = np.float32(1e-35)  # smaller values are rounded to 0, since 127 / them would be too large a number
_SIZE_BITS = np.int32(0x7FFFFFFF)


@njit(**FAST)
def copy_row(x_address, y_address, n, n_padded):
    """Copy ``n`` float32 and append zeros up to ``n_padded``."""
    x, y = f32_view(x_address, n), f32_view(y_address, n_padded)
    for i in range(n):
        y[i] = x[i]
    for i in range(n, n_padded):
        y[i] = _ZERO


def quantiser(group: int) -> Any:
    """The function that rounds a row to int8: x = scale * q with \\|q\\| <= 127, one scale for every ``group`` columns.

    Zeros follow up to a multiple of 32 columns; ``sums`` gets the int32 sum of each group's q. It returns how many groups
    there are. A group that holds a NaN or an infinity has that as its scale, so that products with it are not finite.
    """

    @njit(**FAST)
    def quantise(x_address, q_address, scale_address, sum_address, n):
        never_inlined()
        n_group, n_padded = (n + group - 1) // group, (n + 31) // 32 * 32
        x, bits, q = f32_view(x_address, n), i32_view(x_address, n), i8_view(q_address, n_padded)
        scales, sums = f32_view(scale_address, n_group), i32_view(sum_address, n_group)
        for i in range(n, n_padded):
            q[i] = np.int8(0)
        for g in range(n_group):
            first = g * group
            end = min(n, first + group)
            top = np.int32(0)
            for i in range(first, end):
                top = max(top, np.int32(bits[i] & _SIZE_BITS))  # in this order NaN is above infinity
            peak = float_bits(top)
            scales[g] = peak / _TOP
            factor = _TOP / peak if _TINY < peak < _INFINITY else _ZERO
            total = np.int32(0)
            for i in range(first, end):
                rounded = np.int32(nearest(x[i] * factor))
                q[i] = np.int8(rounded)
                total = np.int32(total + rounded)
            sums[g] = total
        return n_group

    return quantise


@njit(**FAST)
def put_floats(st, n, x, row):
    """Make row ``row`` of the input from ``n`` float32 values at ``x``, which may be there already."""
    target = st[X] + row * st[X_STRIDE]
    if x != target:
        copy_row(x, target, n, (n + 31) // 32 * 32)
