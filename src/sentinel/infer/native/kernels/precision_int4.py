"""int4 matrices, a group of 32 columns after the other in a block: nibbles, then steps and lows; times int16 inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils

from .cpu import TILE_TOKENS
from .emit import F32, I32, I64, V16F, V16S, V32S, Emit, accumulate, kernel, store_scaled, sums
from .inputs import SCALE as INPUT_SCALE
from .inputs import SUM, SUM_STRIDE, X_STRIDE, X, put_rounded
from .intrinsics import f32_view, floats_of_halves, half_at, i8_view
from .layout import BLOCK_BYTES, INT4_GROUP_BYTES, INT4_NIBBLE_BYTES, N_COLUMN, SCALE, WEIGHT
from .vector import FAST

INPUT_TOP = np.float32(32767)  # largest int16 activation: sums span 32 columns only


def _emit_tile(builder: Any, args: Any, tokens: int) -> None:
    x, x_stride, x_scale, x_sum, sum_stride, w, w_scale, n_group, skip, y, y_stride = args
    e = Emit(builder)
    totals = sums(builder, V16F, tokens * 2)
    with cgutils.for_range_slice(builder, I64(0), n_group, I64(1), I64) as (group, _):
        base = e.at(w, builder.mul(group, I64(INT4_GROUP_BYTES)))
        xs = [e.at(e.at(x, builder.mul(x_stride, I64(t))), builder.shl(group, I64(6))) for t in range(tokens)]
        if tokens == 1:
            n_byte = builder.mul(n_group, I64(INT4_GROUP_BYTES))
            ahead = e.at(w, e.ahead(builder.mul(group, I64(INT4_GROUP_BYTES)), n_byte, skip))
            for line in range(0, INT4_GROUP_BYTES, 64):
                e.prefetch(e.at(ahead, line))
        products = _emit_group(builder, base, xs)
        x_sums = []
        for t in range(tokens):
            pointer = e.at(e.at(x_sum, builder.mul(sum_stride, I64(t))), builder.shl(group, I64(2)))
            x_sums.append(e.splat(e.load(pointer, F32)))
        for v in range(2):
            scale, low = (
                floats_of_halves(builder, e.load(e.at(base, INT4_NIBBLE_BYTES + part * 64 + v * 32), V16S, 2))
                for part in range(2)
            )
            for t in range(tokens):
                part = builder.sitofp(products[t * 2 + v], V16F)
                accumulate(
                    builder, totals[t * 2 + v], V16F,
                    lambda s, part=part, scale=scale, low=low, xs=x_sums[t]: e.fma(part, scale, e.fma(xs, low, s)),
                )  # fmt: skip
    store_scaled(
        builder, (x_scale, w_scale), y, y_stride, tokens, lambda i: builder.load(totals[i], typ=V16F)
    )  # fmt: skip


def _emit_group(builder: Any, base: Any, xs: list[Any]) -> list[Any]:
    """Sums of nibble times input over the 32 columns of the group at ``base``, per token two vectors of 16 rows."""
    e = Emit(builder)
    mask = ir.Constant(V32S, [15] * 32)
    shifts = [ir.Constant(V32S, [4 * j] * 32) for j in range(4)]
    found: list[Any] = [ir.Constant(ir.VectorType(I32, 16), None)] * (2 * len(xs))
    for quarter in range(4):  # 8 columns
        words = [e.load(e.at(base, (quarter * 2 + v) * 64), V32S, 64) for v in range(2)]
        for j in range(4):  # a pair of columns
            weights = []
            for word in words:
                value = word if j == 0 else builder.lshr(word, shifts[j])
                weights.append(value if j == 3 else builder.and_(value, mask))
            for t, x in enumerate(xs):
                pointer = e.at(x, (quarter * 4 + j) * 4)
                value = builder.bitcast(e.splat(e.load(pointer, I32)), V32S)
                for v in range(2):
                    found[t * 2 + v] = builder.add(found[t * 2 + v], e.dot_pairs(weights[v], value))
    return found


def _tile(tokens: int) -> Any:
    emitted = kernel(11, lambda builder, args: _emit_tile(builder, args, tokens))

    @njit(fastmath=False)  # said, or else taken from the caller
    def tile(x, x_stride, x_scale, x_sum, sum_stride, w, w_scale, n_group, skip, y, y_stride):
        emitted(x, x_stride, x_scale, x_sum, sum_stride, w, w_scale, n_group, skip, y, y_stride)

    return tile


T0, T1, T2, _ = TILE_TOKENS
_q0, _q1, _q2, _q3 = (_tile(t) for t in TILE_TOKENS)


@njit
def int4_block(n_token, x, x_stride, x_scale, x_sum, sum_stride, w, w_scale, n_group, skip, y, y_stride):
    """One packed int4 block times int16 activations.

    ``x_sum[t, g]`` (float32) is the sum of the activations of group g. Scales and strides as in `int8_block`.
    """
    t = 0
    while t < n_token:
        left = n_token - t
        xt, st, ut, yt = x + t * x_stride, x_scale + t * 4, x_sum + t * sum_stride, y + t * y_stride
        if left >= T0:
            _q0(xt, x_stride, st, ut, sum_stride, w, w_scale, n_group, skip, yt, y_stride)
            t += T0
        elif left >= T1:
            _q1(xt, x_stride, st, ut, sum_stride, w, w_scale, n_group, skip, yt, y_stride)
            t += T1
        elif left >= T2:
            _q2(xt, x_stride, st, ut, sum_stride, w, w_scale, n_group, skip, yt, y_stride)
            t += T2
        else:
            _q3(xt, x_stride, st, ut, sum_stride, w, w_scale, n_group, skip, yt, y_stride)
            t += 1


@njit(**FAST)
def product(st, matrix, block, row0, n_token, y):
    """One block of ``matrix`` times rows of the input; see `precisions.block_product`."""
    stride, n_group = matrix[BLOCK_BYTES], (matrix[N_COLUMN] + 31) // 32
    w, x = matrix[WEIGHT] + block * stride, st[X] + row0 * st[X_STRIDE]
    row_scale, x_scale = matrix[SCALE] + block * 128, st[INPUT_SCALE] + row0 * 4
    sums, sum_stride = st[SUM] + row0 * st[SUM_STRIDE], st[SUM_STRIDE]
    skip = stride - n_group * INT4_GROUP_BYTES
    int4_block(n_token, x, st[X_STRIDE], x_scale, sums, sum_stride, w, row_scale, n_group, skip, y, 128)


@njit(**FAST)
def put_input(st, matrix, x, row):
    """Row ``row`` of the input of ``matrix``, from float32 values at ``x``."""
    put_rounded(st, matrix[N_COLUMN], x, row, INPUT_TOP)


@njit(**FAST)
def embed_row(matrix, token, first, end, out):
    """Columns first..end of row ``token`` of ``matrix``."""
    w, row = matrix[WEIGHT] + token // 32 * matrix[BLOCK_BYTES], token % 32
    scale = f32_view(matrix[SCALE] + token * 4, 1)[0]
    for k in range(first, end):
        group = w + k // 32 * INT4_GROUP_BYTES
        step, low = group + INT4_NIBBLE_BYTES + row * 2, group + INT4_NIBBLE_BYTES + 64 + row * 2
        c = k % 32
        byte = group + (c // 8 * 2 + row // 16) * 64 + (row % 16 * 2 + c % 2) * 2 + c % 8 // 4
        nibble = (np.int64(i8_view(byte, 1)[0]) >> (c % 4 // 2 * 4)) & 15
        out[k] = (np.float32(nibble) * half_at(step) + half_at(low)) * scale
