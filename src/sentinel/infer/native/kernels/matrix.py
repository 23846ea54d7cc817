"""Matrix times rows of activations, each thread its share of the blocks, and what follows on the block at once."""

from __future__ import annotations

import numpy as np
from numba import njit

from .intrinsics import f32_view, prefetch_line
from .layout import (
    BIAS,
    BLOCK_BYTES,
    FP32,
    INT4_GROUP_BYTES,
    INT8,
    KIND,
    MAX_ROWS,
    N_COLUMN,
    N_ROW,
    P_BLOCK,
    SCALE,
    WEIGHT,
    S,
)
from .sync import barrier
from .tiles import float_block, int4_block, int8_block
from .vector import FAST, activate, copy_row, normalise, quantise_row

_X, _X_STRIDE = int(S.INPUT), int(S.INPUT_STRIDE)
_SCALE, _SUM, _SUM_STRIDE = int(S.INPUT_SCALE), int(S.INPUT_SUM), int(S.INPUT_SUM_STRIDE)
_LAYERNORM, _SYNC = int(S.LAYERNORM), int(S.SYNC)
_INT32_MAX = 2**31 - 1
_INT16_MAX = 32767
_WARM_BYTES = 16384


@njit(**FAST)
def input_top(kind, n_column):
    """Largest int16 activation: sums of 127 * top over all columns stay below 2**31 (int4 sums span 32 columns)."""
    if kind == INT8:
        return np.float32(min(_INT16_MAX, _INT32_MAX // (127 * max(n_column, 1))))
    return np.float32(_INT16_MAX)


@njit(**FAST)
def put_input(st, matrix, x, row):
    """Make row ``row`` of the input of ``matrix`` from float32 values at ``x``: copied, or rounded to int16."""
    n = matrix[N_COLUMN]
    n_padded = (n + 31) // 32 * 32
    target = st[_X] + row * st[_X_STRIDE]
    if matrix[KIND] == FP32:
        if x != target:
            copy_row(x, target, n, n_padded)
    else:
        top = input_top(matrix[KIND], n)
        sums = st[_SUM] + row * st[_SUM_STRIDE]
        quantise_row(x, target, st[_SCALE] + row * 4, sums, n, n_padded, top)


@njit(**FAST)
def put_inputs(st, matrix, n, x, x_stride, private, thread, n_thread):
    """Make the input of ``matrix`` from ``n`` rows of float32 values at ``x``, which all threads have written. The rows are
    shared out, but a single one is made by every thread for itself, as its own row."""
    if n == 1:
        put_input(st, matrix, x, thread)
        return
    for r in range(n * thread // n_thread, n * (thread + 1) // n_thread):
        put_input(st, matrix, x + r * x_stride, r)
    barrier(st[_SYNC], private, n_thread)


@njit(**FAST)
def put_norm(st, matrix, x, row, weight, bias, eps, scratch):
    """Make row ``row`` of the input of ``matrix`` from the norm of the values at ``x``."""
    n = matrix[N_COLUMN]
    if matrix[KIND] == FP32:
        normalise(x, st[_X] + row * st[_X_STRIDE], n, weight, bias, st[_LAYERNORM], eps)
    else:
        normalise(x, scratch, n, weight, bias, st[_LAYERNORM], eps)
        put_input(st, matrix, scratch, row)


@njit(**FAST)
def put_pair(st, matrix, x, other, row, norms, eps, scratch):
    """Make row ``row`` of the input of ``matrix`` from the norms of the values at ``other`` and at ``x``, side by side.

    ``norms`` are the addresses of weight and bias of the other's norm, then of the own.
    """
    n = matrix[N_COLUMN] // 2
    normalise(other, scratch, n, norms[0], norms[1], st[_LAYERNORM], eps)
    normalise(x, scratch + 4 * n, n, norms[2], norms[3], st[_LAYERNORM], eps)
    put_input(st, matrix, scratch, row)


@njit(**FAST)
def block_product(st, matrix, block, row0, n_token, y):
    """One block of ``matrix`` times ``n_token`` rows of the input from ``row0``: float32 [tokens][32 rows] at ``y``."""
    stride = matrix[BLOCK_BYTES]
    w = matrix[WEIGHT] + block * stride
    n = matrix[N_COLUMN]
    n_group = (n + 31) // 32
    x = st[_X] + row0 * st[_X_STRIDE]
    if matrix[KIND] == FP32:
        float_block(n_token, x, st[_X_STRIDE], w, 128, n, stride - n * 128, y, 128)
        return
    row_scale, x_scale = matrix[SCALE] + block * 128, st[_SCALE] + row0 * 4
    if matrix[KIND] == INT8:
        skip = stride - n_group * 1024
        int8_block(n_token, x, st[_X_STRIDE], x_scale, w, row_scale, n_group, skip, y, 128)
    else:
        sums, sum_stride = st[_SUM] + row0 * st[_SUM_STRIDE], st[_SUM_STRIDE]
        skip = stride - n_group * INT4_GROUP_BYTES
        int4_block(n_token, x, st[_X_STRIDE], x_scale, sums, sum_stride, w, row_scale, n_group, skip, y, 128)


@njit(**FAST)
def add_bias(matrix, block, n_token, y):
    """Add 32 biases to every row of a block's output."""
    if matrix[BIAS] != 0:
        bias = f32_view(matrix[BIAS] + block * 128, 32)
        out = f32_view(y, n_token * 32)
        for t in range(n_token):
            for i in range(32):
                out[t * 32 + i] += bias[i]


@njit(**FAST)
def block_range(matrix, thread, n_thread):
    """First and end of the blocks that are this thread's."""
    n_block = (matrix[N_ROW] + 31) // 32
    return n_block * thread // n_thread, n_block * (thread + 1) // n_thread


@njit(**FAST)
def warm(matrix, thread, n_thread):
    """Ask for the start of this thread's share of the next matrix, so that memory is not idle at the barrier."""
    if matrix[WEIGHT] != 0:
        first, end = block_range(matrix, thread, n_thread)
        start = matrix[WEIGHT] + first * matrix[BLOCK_BYTES]
        for line in range(0, min(_WARM_BYTES, (end - first) * matrix[BLOCK_BYTES]), 64):
            prefetch_line(start + line)


@njit(**FAST)
def _add_to(y, address, n):
    out = f32_view(address, n)
    part = f32_view(y, n)
    for i in range(n):
        out[i] += part[i]


@njit(**FAST)
def _write_to(y, address, n):
    out = f32_view(address, n)
    part = f32_view(y, n)
    for i in range(n):
        out[i] = part[i]


@njit(**FAST)
def project(st, matrix, row0, n_token, y, y_stride, add, private, thread, n_thread):
    """y = matrix * input + bias, or y += that (``add``), for ``n_token`` rows. ``y`` has 4 * y_stride bytes a row."""
    first, end = block_range(matrix, thread, n_thread)
    scratch = private + P_BLOCK
    for block in range(first, end):
        block_product(st, matrix, block, row0, n_token, scratch)
        add_bias(matrix, block, n_token, scratch)
        n = min(32, matrix[N_ROW] - block * 32)
        for t in range(n_token):
            if add:
                _add_to(scratch + t * 128, y + t * y_stride + block * 128, n)
            else:
                _write_to(scratch + t * 128, y + t * y_stride + block * 128, n)


@njit(**FAST)
def neurons(st, gate, up, gated, activation, row0, n_token, y, y_stride, private, thread, n_thread):
    """y = act(up * input), or act(gate * input) * (up * input), for ``n_token`` rows."""
    first, end = block_range(up, thread, n_thread)
    scratch = private + P_BLOCK
    other = scratch + MAX_ROWS * 128
    for block in range(first, end):
        block_product(st, up, block, row0, n_token, scratch)
        add_bias(up, block, n_token, scratch)
        if gated:
            block_product(st, gate, block, row0, n_token, other)
            add_bias(gate, block, n_token, other)
            activate(other, n_token * 32, activation)
            a, b = f32_view(other, n_token * 32), f32_view(scratch, n_token * 32)
            for i in range(n_token * 32):
                b[i] *= a[i]
        else:
            activate(scratch, n_token * 32, activation)
        n = min(32, up[N_ROW] - block * 32)
        for t in range(n_token):
            _write_to(scratch + t * 128, y + t * y_stride + block * 128, n)
