"""Blocks of weights of bytes or less times rows of bytes: tiles of as many tokens and rows as registers can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import njit

from .cpu import BYTE_TILES
from .dots import Dots
from .emit import kernel


class Tile(NamedTuple):
    """Sizes of a tile: tokens, and halves of the block's 32 rows."""

    tokens: int
    halves: int


Emitted = Callable[[Any, Any, Tile, Dots], None]


def _tile(emit: Emitted, half_bytes: int, size: Tile, dots: Dots) -> Any:
    emitted = kernel(11, lambda builder, args: emit(builder, args, size, dots))
    if size.halves == 2:

        @njit(fastmath=False)  # said, or else taken from the caller, and sums would be put in another order
        def tile(x, x_stride, x_scale, x_sum, scale_stride, w, w_scale, n_group, skip, y, y_stride):
            emitted(x, x_stride, x_scale, x_sum, scale_stride, w, w_scale, n_group, skip, y, y_stride)

    else:

        @njit(fastmath=False)
        def tile(x, x_stride, x_scale, x_sum, scale_stride, w, w_scale, n_group, skip, y, y_stride):
            emitted(x, x_stride, x_scale, x_sum, scale_stride, w, w_scale, n_group, skip, y, y_stride)
            w, w_scale, y = w + half_bytes, w_scale + 64, y + 64
            emitted(x, x_stride, x_scale, x_sum, scale_stride, w, w_scale, n_group, skip, y, y_stride)

    return tile


def block_of(emit: Emitted, half_bytes: int, dots: Dots, sizes: Any = BYTE_TILES) -> Any:
    """The product of one block, in tiles that ``emit`` makes; the second half of its rows is ``half_bytes`` further on.

    y[t, r] = w_scale[r] * sum over columns of x_scale[t, group of k] * x[t, k] * w[r, k] for ``n_token`` rows of bytes at
    ``x``. Every column group of a row has its float32 scale and its sum (as the emitter reads it) ``scale_stride`` bytes
    after those of the row before. ``n_group`` groups of 32 columns; strides in bytes. A sum is made in the same order in
    every tile, so that results do not depend on the number of tokens.
    """
    t0, t1, t2, _ = (tokens for tokens, _ in sizes)
    b0, b1, b2, b3 = (_tile(emit, half_bytes, Tile(*size), dots) for size in sizes)

    @njit
    def block(n_token, x, x_stride, x_scale, x_sum, scale_stride, w, w_scale, n_group, skip, y, y_stride):
        t = 0
        while t < n_token:
            left = n_token - t
            xt, st, ut, yt = x + t * x_stride, x_scale + t * scale_stride, x_sum + t * scale_stride, y + t * y_stride
            if left >= t0:
                b0(xt, x_stride, st, ut, scale_stride, w, w_scale, n_group, skip, yt, y_stride)
                t += t0
            elif left >= t1:
                b1(xt, x_stride, st, ut, scale_stride, w, w_scale, n_group, skip, yt, y_stride)
                t += t1
            elif left >= t2:
                b2(xt, x_stride, st, ut, scale_stride, w, w_scale, n_group, skip, yt, y_stride)
                t += t2
            else:
                b3(xt, x_stride, st, ut, scale_stride, w, w_scale, n_group, skip, yt, y_stride)
                t += 1

    return block
