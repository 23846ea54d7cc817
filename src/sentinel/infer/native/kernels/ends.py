"""The two ends of a pass: token embeddings in, logits and the likeliest token out."""

from __future__ import annotations

import numpy as np
from numba import njit

from .intrinsics import f32_view, float_bits, i64_view
from .layout import MATRIX_FIELDS, N_ROW, P_BEST, P_BLOCK, S
from .matrix import add_bias, blocks_of
from .precisions import block_product, embed_row
from .sync import next_item
from .vector import FAST, soft_cap

_THREADS, _N_EMBD = int(S.THREADS), int(S.N_EMBD)
_LOGITS, _LOGITS_STRIDE, _BEST = int(S.LOGITS), int(S.LOGITS_STRIDE), int(S.BEST)
_EMBED_SCALE, _LOGIT_CAP = int(S.EMBED_SCALE_BITS), int(S.LOGIT_CAP_BITS)
_SYNC = int(S.SYNC)
_PRIVATE, _PRIVATE_STRIDE = int(S.PRIVATE), int(S.PRIVATE_STRIDE)
_NO_LOGIT = np.float32(-np.inf)


@njit(**FAST)
def embed(st, table, positions, token, position, first, end, x):
    """Columns first..end of a token's scaled embedding, from the matrix of fields ``table``, and of its position's."""
    out = f32_view(x, st[_N_EMBD])
    embed_row(i64_view(table, MATRIX_FIELDS), token, first, end, out)
    scale = float_bits(np.int32(st[_EMBED_SCALE]))
    if scale != np.float32(1):
        for k in range(first, end):
            out[k] *= scale
    if positions != 0:
        added = f32_view(positions + position * st[_N_EMBD] * 4, st[_N_EMBD])
        for k in range(first, end):
            out[k] += added[k]


@njit(**FAST)
def head_logits(st, matrix, row0, n, private, thread, n_thread):
    """Logits of ``n`` rows and, per thread, the largest of its share."""
    for t in range(n):
        i64_view(private + P_BEST + t * 16, 1)[0] = 0
        f32_view(private + P_BEST + t * 16 + 8, 1)[0] = _NO_LOGIT
    scratch, cap = private + P_BLOCK, float_bits(np.int32(st[_LOGIT_CAP]))
    n_block = blocks_of(matrix)
    block = next_item(st[_SYNC], private, n == 1, n_block, -1, thread, n_thread)
    while block >= 0:
        block_product(st, matrix, block, row0, n, scratch)
        add_bias(matrix, block, n, scratch)
        if cap > np.float32(0):
            soft_cap(scratch, n * 32, cap)
        size = min(32, matrix[N_ROW] - block * 32)
        for t in range(n):
            part = f32_view(scratch + t * 128, size)
            out = f32_view(st[_LOGITS] + t * st[_LOGITS_STRIDE] + block * 128, size)
            top = part[0]
            for i in range(size):
                out[i] = part[i]
                top = max(top, part[i])
            best = f32_view(private + P_BEST + t * 16 + 8, 1)
            if top > best[0]:
                best[0] = top
                i = 0
                while part[i] != top:
                    i += 1
                i64_view(private + P_BEST + t * 16, 1)[0] = block * 32 + i
        block = next_item(st[_SYNC], private, n == 1, n_block, block, thread, n_thread)


@njit(**FAST)
def gather_best(st, n):
    for t in range(n):
        top, token = _NO_LOGIT, np.int64(0)
        for thread in range(st[_THREADS]):
            area = st[_PRIVATE] + thread * st[_PRIVATE_STRIDE] + P_BEST + t * 16
            value = f32_view(area + 8, 1)[0]
            found = i64_view(area, 1)[0]
            if value > top or (value == top and found < token):
                top, token = value, found
        i64_view(st[_BEST], n)[t] = token
