"""int8 matrices, [K / 4][32 rows][4 columns] a block, with a scale per row; times int8 inputs with one per 32 columns."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils

from .dots import INT8, Dots
from .emit import F32, I32, I64, V16F, V16I, Emit, accumulate, store_scaled, sums
from .inputs import COLUMNS, SUM, SUM_STRIDE, X_STRIDE, X, quantise
from .inputs import SCALE as INPUT_SCALE
from .intrinsics import f32_view, i8_view, i32_view
from .layout import BLOCK_BYTES, N_COLUMN, SCALE, WEIGHT
from .tiles import Tile, block_of
from .vector import FAST

_HALF_BYTES = 64
_QUADS = COLUMNS // 4


def emit_tile(builder: Any, args: Any, tile: Tile, dots: Dots) -> None:
    """``args`` as in `tiles.block_of`; the sum of a group is what its int32 sums of products start from."""
    x, x_stride, x_scale, x_sum, scale_stride, w, w_scale, n_group, skip, y, y_stride = args
    e = Emit(builder)
    tokens, halves = tile
    chains = 2 if tokens == 1 else 1  # a lone token needs several sums under way to hide the latency of a product
    totals, dot_sums = sums(builder, V16F, tokens * halves), sums(builder, dots.KIND, chains * tokens * halves)
    n_quad = builder.shl(n_group, I64(3))
    with cgutils.for_range_slice(builder, I64(0), n_quad, I64(_QUADS), I64) as (first, group):
        at_group = builder.shl(group, I64(2))
        rows = [builder.add(builder.mul(scale_stride, I64(t)), at_group) for t in range(tokens)]
        none = ir.Constant(dots.KIND, None)
        for i, dot_sum in enumerate(dot_sums):
            started = dots.OFFSET and i < tokens * halves
            builder.store(e.splat(e.load(e.at(x_sum, rows[i // halves]), I32)) if started else none, dot_sum)
        end = builder.add(first, I64(_QUADS))
        end = builder.select(builder.icmp_signed("<", end, n_quad), end, n_quad)
        _emit_group(builder, (x, x_stride, w, skip), (first, end, n_quad), tile, dots, dot_sums)
        for t in range(tokens):
            scale = e.splat(e.load(e.at(x_scale, rows[t]), F32))
            for v in range(halves):
                own = [builder.load(dot_sum, typ=dots.KIND) for dot_sum in dot_sums[t * halves + v :: tokens * halves]]
                part = builder.sitofp(dots.whole(builder, functools.reduce(builder.add, own)), V16F)
                accumulate(
                    builder, totals[t * halves + v], V16F,
                    lambda s, part=part, scale=scale: e.fma(part, scale, s),
                )  # fmt: skip
    store_scaled(builder, w_scale, y, y_stride, tile, totals)


def _emit_group(builder: Any, areas: Any, quads: Any, tile: Tile, dots: Dots, dot_sums: list[Any]) -> None:
    """Add to ``dot_sums`` the products of the columns of a group: so many quads of columns of all of them."""
    x, x_stride, w, skip = areas
    first, end, n_quad = quads
    e = Emit(builder)
    tokens, halves = tile
    unroll = 8 if tokens == 1 else 1  # LLVM unrolls where registers allow it
    flip = ir.Constant(V16I, [-0x7F7F7F80] * 16)  # 128 added to every byte
    with cgutils.for_range_slice(builder, first, end, I64(unroll), I64) as (quad, _):
        at_row, at_input = builder.shl(quad, I64(7)), builder.shl(quad, I64(2))
        row, ahead = e.at(w, at_row), e.at(w, e.ahead(at_row, builder.shl(n_quad, I64(7)), skip))
        for u in range(unroll):
            if tokens == 1:
                for line in range(2):
                    e.prefetch(e.at(ahead, u * 128 + line * 64))
            weights = [e.load(e.at(row, u * 128 + v * _HALF_BYTES), V16I, 64) for v in range(halves)]
            if dots.OFFSET:
                weights = [builder.xor(weight, flip) for weight in weights]
            for t in range(tokens):
                value = e.splat(e.load(e.at(e.at(e.at(x, builder.mul(x_stride, I64(t))), at_input), u * 4), I32))
                for v in range(halves):
                    dot_sum = dot_sums[((u * tokens + t) * halves + v) % len(dot_sums)]
                    accumulate(
                        builder, dot_sum, dots.KIND,
                        lambda s, value=value, weight=weights[v]: dots.add(builder, s, weight, value),
                    )  # fmt: skip


int8_block = block_of(emit_tile, _HALF_BYTES, INT8)
_OFFSET = np.int32(INT8.OFFSET)


@njit(**FAST)
def product(st, matrix, block, row0, n_token, y):
    """One block of ``matrix`` times rows of the input; see `precisions.block_product`."""
    stride, n_group = matrix[BLOCK_BYTES], (matrix[N_COLUMN] + 31) // 32
    w, x = matrix[WEIGHT] + block * stride, st[X] + row0 * st[X_STRIDE]
    scale_stride, row_scale, skip = st[SUM_STRIDE], matrix[SCALE] + block * 128, stride - n_group * 1024
    scales, sums = st[INPUT_SCALE] + row0 * scale_stride, st[SUM] + row0 * scale_stride
    int8_block(n_token, x, st[X_STRIDE], scales, sums, scale_stride, w, row_scale, n_group, skip, y, 128)


@njit(**FAST)
def quantise_row(x, q, scales, sums, n):
    """A row of the input from ``n`` float32 at ``x``: bytes, scales, and what the sums of products start from."""
    n_group = quantise(x, q, scales, sums, n)
    start = i32_view(sums, n_group)
    for g in range(n_group):
        start[g] *= -_OFFSET


@njit(**FAST)
def put_input(st, matrix, x, row):
    """Row ``row`` of the input of ``matrix``, from float32 values at ``x``."""
    offset = row * st[SUM_STRIDE]
    quantise_row(x, st[X] + row * st[X_STRIDE], st[INPUT_SCALE] + offset, st[SUM] + offset, matrix[N_COLUMN])


@njit(**FAST)
def embed_row(matrix, token, first, end, out):
    """Columns first..end of row ``token`` of ``matrix``."""
    w = matrix[WEIGHT] + token // 32 * matrix[BLOCK_BYTES] + token % 32 * 4
    scale = f32_view(matrix[SCALE] + token * 4, 1)[0]
    for k in range(first, end):
        out[k] = np.float32(i8_view(w + k // 4 * 128 + k % 4, 1)[0]) * scale
