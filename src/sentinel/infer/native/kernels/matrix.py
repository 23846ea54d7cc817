"""Matrix times rows of activations, each thread its share of the blocks, and what follows on the block at once."""

from __future__ import annotations

from numba import njit

from .intrinsics import f32_view, never_inlined, prefetch_line
from .layout import BIAS, BLOCK_BYTES, MAX_ROWS, N_COLUMN, N_ROW, P_BLOCK, WEIGHT, S
from .precisions import block_product, input_or, put_input
from .sync import barrier, next_item
from .vector import FAST, activate, normalise

_LAYERNORM, _SYNC = int(S.LAYERNORM), int(S.SYNC)
_WARM_BYTES = 16384


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
    """Make row ``row`` of the input of ``matrix`` from the norm of the values at ``x``; with ``weight`` 0, of these."""
    if weight == 0:
        put_input(st, matrix, x, row)
        return
    place = input_or(st, matrix, row, scratch)
    normalise(x, place, matrix[N_COLUMN], weight, bias, st[_LAYERNORM], eps)
    put_input(st, matrix, place, row)


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
def add_bias(matrix, block, n_token, y):
    """Add 32 biases to every row of a block's output."""
    never_inlined()
    if matrix[BIAS] != 0:
        bias = f32_view(matrix[BIAS] + block * 128, 32)
        out = f32_view(y, n_token * 32)
        for t in range(n_token):
            for i in range(32):
                out[t * 32 + i] += bias[i]


@njit(**FAST)
def blocks_of(matrix):
    """Number of its blocks."""
    return (matrix[N_ROW] + 31) // 32


@njit(**FAST)
def warm(matrix, thread, n_thread):
    """Ask for the start of this thread's share of the next matrix, so that memory is not idle at the barrier."""
    if matrix[WEIGHT] != 0:
        n_block = blocks_of(matrix)
        first, end = n_block * thread // n_thread, n_block * (thread + 1) // n_thread
        start = matrix[WEIGHT] + first * matrix[BLOCK_BYTES]
        for line in range(0, min(_WARM_BYTES, (end - first) * matrix[BLOCK_BYTES]), 64):
            prefetch_line(start + line)


@njit(**FAST)
def add_to(y, address, n):
    """Add ``n`` values at ``y`` to those at ``address``."""
    never_inlined()
    out = f32_view(address, n)
    part = f32_view(y, n)
    for i in range(n):
        out[i] += part[i]


@njit(**FAST)
def _write_block(part, n_token, y, y_stride, n):
    """Write ``n`` columns of a block's ``n_token`` rows at ``part`` to ``y``."""
    never_inlined()
    for t in range(n_token):
        source, target = f32_view(part + t * 128, 32), f32_view(y + t * y_stride, n)
        if n == 32:  # known to the compiler, it is two vectors
            for i in range(32):
                target[i] = source[i]
        else:
            for i in range(n):
                target[i] = source[i]


@njit(**FAST)
def _add_block(part, n_token, y, y_stride, n):
    """`_write_block`, but to what is there it adds."""
    never_inlined()
    for t in range(n_token):
        source, target = f32_view(part + t * 128, 32), f32_view(y + t * y_stride, n)
        if n == 32:
            for i in range(32):
                target[i] += source[i]
        else:
            for i in range(n):
                target[i] += source[i]


@njit(**FAST)
def project(st, matrix, row0, n_token, y, y_stride, add, private, thread, n_thread):
    """y = matrix * input + bias, or y += that (``add``), for ``n_token`` rows. ``y`` has 4 * y_stride bytes a row."""
    n_block, scratch = blocks_of(matrix), private + P_BLOCK
    block = next_item(st[_SYNC], private, n_token == 1, n_block, -1, thread, n_thread)
    while block >= 0:
        block_product(st, matrix, block, row0, n_token, scratch)
        add_bias(matrix, block, n_token, scratch)
        n = min(32, matrix[N_ROW] - block * 32)
        if add:
            _add_block(scratch, n_token, y + block * 128, y_stride, n)
        else:
            _write_block(scratch, n_token, y + block * 128, y_stride, n)
        block = next_item(st[_SYNC], private, n_token == 1, n_block, block, thread, n_thread)


@njit(**FAST)
def neurons(st, gate, up, gated, activation, row0, n_token, y, y_stride, private, thread, n_thread):
    """y = act(up * input), or act(gate * input) * (up * input), for ``n_token`` rows."""
    n_block, scratch = blocks_of(up), private + P_BLOCK
    other = scratch + MAX_ROWS * 128
    block = next_item(st[_SYNC], private, n_token == 1, n_block, -1, thread, n_thread)
    while block >= 0:
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
        _write_block(scratch, n_token, y + block * 128, y_stride, n)
        block = next_item(st[_SYNC], private, n_token == 1, n_block, block, thread, n_thread)
