"""int8 matrices, [K / 2][32 rows][2 columns] a block, with a scale per row; times int16 inputs, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.core import cgutils

from .cpu import TILE_TOKENS
from .emit import I32, I64, V16F, V16I, V32B, V32S, Emit, accumulate, kernel, store_scaled, sums
from .inputs import SCALE as INPUT_SCALE
from .inputs import X_STRIDE, X, put_rounded
from .intrinsics import f32_view, i8_view
from .layout import BLOCK_BYTES, GROUP, N_COLUMN, SCALE, WEIGHT
from .vector import FAST

_INT32_MAX = 2**31 - 1
_INT16_MAX = 32767


@njit(**FAST)
def input_top(n_column):
    """Largest int16 activation: sums of 127 * top over all columns stay below 2**31."""
    return np.float32(min(_INT16_MAX, _INT32_MAX // (127 * max(n_column, 1))))


def _emit_tile(builder: Any, args: Any, tokens: int) -> None:
    x, x_stride, x_scale, w, w_scale, n_group, skip, y, y_stride = args
    e = Emit(builder)
    pairs = GROUP // 2
    unroll = pairs if tokens == 1 else max(2, 16 // tokens)
    unroll = next(u for u in (16, 8, 4, 2) if u <= unroll)
    totals = sums(builder, V16I, tokens * 2)
    count = builder.mul(n_group, I64(pairs))
    with cgutils.for_range_slice(builder, I64(0), count, I64(unroll), I64) as (pair, _):
        row = e.at(w, builder.shl(pair, I64(6)))
        offset = builder.shl(pair, I64(2))
        ahead = e.at(w, e.ahead(builder.shl(pair, I64(6)), builder.shl(count, I64(6)), skip))
        for u in range(unroll):
            if tokens == 1:
                e.prefetch(e.at(ahead, u * 64))
            weights = [builder.sext(e.load(e.at(row, u * 64 + v * 32), V32B, 32), V32S) for v in range(2)]
            for t in range(tokens):
                pointer = e.at(e.at(e.at(x, builder.mul(x_stride, I64(t))), offset), u * 4)
                value = builder.bitcast(e.splat(e.load(pointer, I32)), V32S)
                for v in range(2):
                    accumulate(
                        builder, totals[t * 2 + v], V16I,
                        lambda s, value=value, weight=weights[v]: builder.add(s, e.dot_pairs(weight, value)),
                    )  # fmt: skip

    def total(i: int) -> Any:
        return builder.sitofp(builder.load(totals[i], typ=V16I), V16F)

    store_scaled(builder, (x_scale, w_scale), y, y_stride, tokens, total)


def _tile(tokens: int) -> Any:
    emitted = kernel(9, lambda builder, args: _emit_tile(builder, args, tokens))

    @njit(fastmath=False)  # said, or else taken from the caller
    def tile(x, x_stride, x_scale, w, w_scale, n_group, skip, y, y_stride):
        emitted(x, x_stride, x_scale, w, w_scale, n_group, skip, y, y_stride)

    return tile


T0, T1, T2, _ = TILE_TOKENS
_b0, _b1, _b2, _b3 = (_tile(t) for t in TILE_TOKENS)


@njit
def int8_block(n_token, x, x_stride, x_scale, w, w_scale, n_group, skip, y, y_stride):
    """One packed int8 block times int16 activations.

    y[t, r] = x_scale[t] * w_scale[r] * sum over 32 * n_group columns of x[t, k] * w[r, k]. Strides in bytes.
    """
    t = 0
    while t < n_token:
        left = n_token - t
        if left >= T0:
            _b0(x + t * x_stride, x_stride, x_scale + t * 4, w, w_scale, n_group, skip, y + t * y_stride, y_stride)
            t += T0
        elif left >= T1:
            _b1(x + t * x_stride, x_stride, x_scale + t * 4, w, w_scale, n_group, skip, y + t * y_stride, y_stride)
            t += T1
        elif left >= T2:
            _b2(x + t * x_stride, x_stride, x_scale + t * 4, w, w_scale, n_group, skip, y + t * y_stride, y_stride)
            t += T2
        else:
            _b3(x + t * x_stride, x_stride, x_scale + t * 4, w, w_scale, n_group, skip, y + t * y_stride, y_stride)
            t += 1


@njit(**FAST)
def product(st, matrix, block, row0, n_token, y):
    """One block of ``matrix`` times rows of the input; see `precisions.block_product`."""
    stride, n_group = matrix[BLOCK_BYTES], (matrix[N_COLUMN] + 31) // 32
    w, x = matrix[WEIGHT] + block * stride, st[X] + row0 * st[X_STRIDE]
    row_scale, x_scale = matrix[SCALE] + block * 128, st[INPUT_SCALE] + row0 * 4
    skip = stride - n_group * 1024
    int8_block(n_token, x, st[X_STRIDE], x_scale, w, row_scale, n_group, skip, y, 128)


@njit(**FAST)
def put_input(st, matrix, x, row):
    """Row ``row`` of the input of ``matrix``, from float32 values at ``x``."""
    put_rounded(st, matrix[N_COLUMN], x, row, input_top(matrix[N_COLUMN]))


@njit(**FAST)
def embed_row(matrix, token, first, end, out):
    """Columns first..end of row ``token`` of ``matrix``."""
    w = matrix[WEIGHT] + token // 32 * matrix[BLOCK_BYTES] + token % 32 * 2
    scale = f32_view(matrix[SCALE] + token * 4, 1)[0]
    for k in range(first, end):
        out[k] = np.float32(i8_view(w + k // 2 * 64 + k % 2, 1)[0]) * scale
