"""int4 matrices, a group of 32 columns after the other in a block: of 16 rows, then of 16 more, nibbles, steps and lows.
Times int8 inputs with a scale per group."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils

from .dots import INT4, Dots
from .emit import F32, I32, I64, V16F, V16I, V16S, Emit, accumulate, store_scaled, sums
from .inputs import SCALE as INPUT_SCALE
from .inputs import SUM, SUM_STRIDE, X_STRIDE, X, quantise
from .intrinsics import f32_view, floats_of_halves, half_at, i8_view, i32_view
from .layout import BLOCK_BYTES, GROUP, INT4_GROUP_BYTES, INT4_HALF_BYTES, INT4_NIBBLE_BYTES, N_COLUMN, SCALE, WEIGHT
from .tiles import Tile, block_of
from .vector import FAST


def emit_tile(builder: Any, args: Any, tile: Tile, dots: Dots) -> None:
    """``args`` as in `tiles.block_of`; the sum of a group is float32, of the input itself."""
    x, x_stride, x_scale, x_sum, scale_stride, w, w_scale, n_group, skip, y, y_stride = args
    e = Emit(builder)
    tokens, halves = tile
    totals = sums(builder, V16F, tokens * halves)
    with cgutils.for_range_slice(builder, I64(0), n_group, I64(1), I64) as (group, _):
        offset = builder.mul(group, I64(INT4_GROUP_BYTES))
        base, at_group = e.at(w, offset), builder.shl(group, I64(2))
        if tokens == 1:
            ahead = e.at(w, e.ahead(offset, builder.mul(n_group, I64(INT4_GROUP_BYTES)), skip))
            for line in range(0, INT4_GROUP_BYTES, 64):
                e.prefetch(e.at(ahead, line))
        xs = [e.at(e.at(x, builder.mul(x_stride, I64(t))), builder.shl(group, I64(5))) for t in range(tokens)]
        products = _emit_group(builder, base, xs, halves, dots)
        scales, x_sums = (
            [e.splat(e.load(e.at(e.at(area, builder.mul(scale_stride, I64(t))), at_group), F32)) for t in range(tokens)]
            for area in (x_scale, x_sum)
        )
        for v in range(halves):
            start = v * INT4_HALF_BYTES + INT4_NIBBLE_BYTES
            step, low = (floats_of_halves(builder, e.load(e.at(base, start + part * 32), V16S, 2)) for part in range(2))
            for t in range(tokens):
                part = builder.sitofp(dots.whole(builder, products[t * halves + v]), V16F)
                grown = builder.fmul(step, scales[t])
                accumulate(
                    builder, totals[t * halves + v], V16F,
                    lambda s, part=part, grown=grown, low=low, xs=x_sums[t]: e.fma(part, grown, e.fma(xs, low, s)),
                )  # fmt: skip
    store_scaled(builder, w_scale, y, y_stride, tile, totals)


def _emit_group(builder: Any, base: Any, xs: list[Any], halves: int, dots: Dots) -> list[Any]:
    """Sums of nibble times input over the 32 columns of the group at ``base``, per token a vector for each half."""
    e = Emit(builder)
    mask, shift = ir.Constant(V16I, [0x0F0F0F0F] * 16), ir.Constant(V16I, [4] * 16)
    found: list[Any] = [ir.Constant(dots.KIND, None)] * (halves * len(xs))
    for pair in range(GROUP // 8):
        both = [e.load(e.at(base, v * INT4_HALF_BYTES + pair * 64), V16I, 64) for v in range(halves)]
        for high in range(2):  # 4 columns each
            weights = [builder.and_(builder.lshr(b, shift) if high else b, mask) for b in both]
            for t, x in enumerate(xs):
                value = e.splat(e.load(e.at(x, (pair * 2 + high) * 4), I32))
                for v in range(halves):
                    found[t * halves + v] = dots.add(builder, found[t * halves + v], weights[v], value)
    return found


int4_block = block_of(emit_tile, INT4_HALF_BYTES, INT4)


@njit(**FAST)
def product(st, matrix, block, row0, n_token, y):
    """One block of ``matrix`` times rows of the input; see `precisions.block_product`."""
    stride, n_group = matrix[BLOCK_BYTES], (matrix[N_COLUMN] + 31) // 32
    w, x = matrix[WEIGHT] + block * stride, st[X] + row0 * st[X_STRIDE]
    scale_stride, row_scale = st[SUM_STRIDE], matrix[SCALE] + block * 128
    scales, sums = st[INPUT_SCALE] + row0 * scale_stride, st[SUM] + row0 * scale_stride
    skip = stride - n_group * INT4_GROUP_BYTES
    int4_block(n_token, x, st[X_STRIDE], scales, sums, scale_stride, w, row_scale, n_group, skip, y, 128)


@njit(**FAST)
def quantise_row(x, q, scales, sums, n):
    """A row of the input from ``n`` float32 at ``x``: bytes, scales, and sums of what they stand for."""
    n_group = quantise(x, q, scales, sums, n)
    whole, scale, total = i32_view(sums, n_group), f32_view(scales, n_group), f32_view(sums, n_group)
    for g in range(n_group):
        total[g] = np.float32(whole[g]) * scale[g]


@njit(**FAST)
def put_input(st, matrix, x, row):
    """Row ``row`` of the input of ``matrix``, from float32 values at ``x``."""
    offset = row * st[SUM_STRIDE]
    quantise_row(x, st[X] + row * st[X_STRIDE], st[INPUT_SCALE] + offset, st[SUM] + offset, matrix[N_COLUMN])


@njit(**FAST)
def embed_row(matrix, token, first, end, out):
    """Columns first..end of row ``token`` of ``matrix``."""
    w, row = matrix[WEIGHT] + token // 32 * matrix[BLOCK_BYTES] + token % 32 // 16 * INT4_HALF_BYTES, token % 16
    scale = f32_view(matrix[SCALE] + token * 4, 1)[0]
    for k in range(first, end):
        group, c = w + k // 32 * INT4_GROUP_BYTES, k % 32
        step = group + INT4_NIBBLE_BYTES + row * 2
        both = np.int64(i8_view(group + c // 8 * 64 + row * 4 + c % 4, 1)[0])
        out[k] = (np.float32(both >> (c // 4 % 2 * 4) & 15) * half_at(step) + half_at(step + 32)) * scale
