"""float32 matrices, [K][32 rows] a block. The same tile reads keys and values, which may be in half precision or bytes."""

from __future__ import annotations

from typing import Any

from numba import njit
from numba.core import cgutils

from .cpu import TILE_TOKENS
from .emit import F32, I64, V16B, V16F, V16I, V16S, Emit, accumulate, kernel, sums
from .inputs import X_STRIDE, X, put_floats
from .intrinsics import f32_view, floats_of_halves
from .layout import BLOCK_BYTES, N_COLUMN, WEIGHT
from .vector import FAST

# Columns are added one after the other, whatever the number of tokens, so that a token's bits do not depend on the others
# of its pass: proposals that are verified together are what they would be alone. The two to eight sums that a lone token
# has under way take 128 bytes in the four cycles of an fma: more than memory brings.


def _emit_tile(builder: Any, args: Any, tokens: int, size: int) -> None:
    x, x_stride, w, w_stride, n, skip, y, y_stride = args
    e = Emit(builder)

    totals = sums(builder, V16F, tokens * 2)
    with cgutils.for_range_slice(builder, I64(0), n, I64(1), I64) as (k, _):
        row = e.at(w, builder.mul(k, w_stride))
        if size == 1:
            wide = [builder.sext(e.load(e.at(row, v * 16), V16B, 1), V16I) for v in range(2)]
            weights = [builder.sitofp(whole, V16F) for whole in wide]
        elif size == 2:
            weights = [floats_of_halves(builder, e.load(e.at(row, v * 32), V16S, 2)) for v in range(2)]
        else:
            weights = [e.load(e.at(row, v * 64), V16F) for v in range(2)]
        if tokens == 1:
            ahead = e.at(w, e.ahead(builder.mul(k, w_stride), builder.mul(n, w_stride), skip))
            for line in range(0, 32 * size, 64):
                e.prefetch(e.at(ahead, line))
        offset = builder.shl(k, I64(2))
        for t in range(tokens):
            value = e.splat(e.load(e.at(e.at(x, builder.mul(x_stride, I64(t))), offset), F32))
            for v in range(2):
                accumulate(
                    builder, totals[t * 2 + v], V16F,
                    lambda s, value=value, weight=weights[v]: e.fma(value, weight, s),
                )  # fmt: skip
    for t in range(tokens):
        for v in range(2):
            out = e.at(e.at(y, builder.mul(y_stride, I64(t))), v * 64)
            builder.store(builder.load(totals[t * 2 + v], typ=V16F), out, align=4)


def _tile(tokens: int, size: int) -> Any:
    emitted = kernel(8, lambda builder, args: _emit_tile(builder, args, tokens, size))

    @njit(fastmath=False)  # said, or else taken from the caller, and the sums would be put in another order
    def tile(x, x_stride, w, w_stride, n, skip, y, y_stride):
        emitted(x, x_stride, w, w_stride, n, skip, y, y_stride)

    return tile


T0, T1, T2, _ = TILE_TOKENS
_f0, _f1, _f2, _f3 = (_tile(t, 4) for t in TILE_TOKENS)
_h0, _h1, _h2, _h3 = (_tile(t, 2) for t in TILE_TOKENS)
_b0, _b1, _b2, _b3 = (_tile(t, 1) for t in TILE_TOKENS)


@njit
def float_block(n_token, x, x_stride, w, w_stride, n, skip, y, y_stride):
    """y[t, :32] = sum over k < n of x[t, k] * w[k, :32], all float32. Strides in bytes.

    ``skip``: unused bytes between this block and the one read next, for prefetching (as in the other blocks).
    """
    t = 0
    while t < n_token:
        left = n_token - t
        if left >= T0:
            _f0(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T0
        elif left >= T1:
            _f1(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T1
        elif left >= T2:
            _f2(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T2
        else:
            _f3(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += 1


@njit
def half_block(n_token, x, x_stride, w, w_stride, n, skip, y, y_stride):
    """`float_block` with ``w`` in half precision."""
    t = 0
    while t < n_token:
        left = n_token - t
        if left >= T0:
            _h0(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T0
        elif left >= T1:
            _h1(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T1
        elif left >= T2:
            _h2(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T2
        else:
            _h3(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += 1


@njit
def byte_block(n_token, x, x_stride, w, w_stride, n, skip, y, y_stride):
    """`float_block` with ``w`` in int8."""
    t = 0
    while t < n_token:
        left = n_token - t
        if left >= T0:
            _b0(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T0
        elif left >= T1:
            _b1(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T1
        elif left >= T2:
            _b2(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T2
        else:
            _b3(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += 1


@njit(**FAST)
def product(st, matrix, block, row0, n_token, y):
    """One block of ``matrix`` times rows of the input; see `precisions.block_product`."""
    stride, n = matrix[BLOCK_BYTES], matrix[N_COLUMN]
    w, x = matrix[WEIGHT] + block * stride, st[X] + row0 * st[X_STRIDE]
    float_block(n_token, x, st[X_STRIDE], w, 128, n, stride - n * 128, y, 128)


@njit(**FAST)
def put_input(st, matrix, x, row):
    """Row ``row`` of the input of ``matrix``, from float32 values at ``x``."""
    put_floats(st, matrix[N_COLUMN], x, row)


@njit(**FAST)
def embed_row(matrix, token, first, end, out):
    """Columns first..end of row ``token`` of ``matrix``."""
    w = matrix[WEIGHT] + token // 32 * matrix[BLOCK_BYTES] + token % 32 * 4
    for k in range(first, end):
        out[k] = f32_view(w + k * 128, 1)[0]
