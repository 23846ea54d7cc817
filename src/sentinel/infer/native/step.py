"""A whole pass of tokens through the model in one compiled call: from token numbers to logits and the likeliest token.

Every thread runs `_forward` with its own number and takes its share of each part; between parts they meet at a
barrier. With one token, every thread makes the (small) inputs of a matrix for itself instead of waiting for another.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from .intrinsics import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    cycles,
    f32_view,
    float_bits,
    half_at,
    i8_view,
    i64_view,
    pause,
)
from .kernels_attention import attend, cache_row
from .kernels_matrix import add_bias, block_product, block_range, neurons, project, put_input, put_norm, warm
from .kernels_vector import FAST
from .layout import (
    BLOCK_BYTES,
    FP32,
    INT8,
    KIND,
    L_DOWN,
    L_GATE,
    L_GATED,
    L_HEAD,
    L_KV_HEAD,
    L_NEURON,
    L_NORM1,
    L_NORM1_BIAS,
    L_NORM2,
    L_NORM2_BIAS,
    L_OUT,
    L_QKV,
    L_UP,
    LAST_ROWS,
    LAST_TILES,
    LAYER_FIELDS,
    MATRIX_FIELDS,
    MAX_ROWS,
    N_LAST_TILE,
    N_ROW,
    N_TILE,
    N_WANTED,
    P_BEST,
    P_BLOCK,
    P_JOBS,
    P_SCORES,
    PARTS,
    PLAN_INTS,
    R_POSITION,
    R_SEQUENCE,
    R_TOKEN,
    R_WANTED,
    ROW_FIELDS,
    SCALE,
    TILES,
    WANTED,
    WEIGHT,
    Y_JOB,
    Y_PARKED,
    S,
)
from .packing import INT4_GROUP_BYTES
from .sync import barrier
from .tiles import T0

_N_FIELD, _N_PART = int(S.N_FIELD), len(PARTS)
_THREADS, _N_LAYER, _N_EMBD, _VOCAB = int(S.THREADS), int(S.N_LAYER), int(S.N_EMBD), int(S.VOCAB)
_EPS, _ACTIVATION, _ROWS, _LAYERS, _ROW_TABLE = (
    int(S.EPS_BITS),
    int(S.ACTIVATION),
    int(S.N_ROW),
    int(S.LAYERS),
    int(S.ROWS),
)
_EMBED, _HEAD, _POSITIONS = int(S.EMBED), int(S.HEAD), int(S.POSITIONS)
_FINAL_NORM, _FINAL_BIAS = int(S.FINAL_NORM), int(S.FINAL_NORM_BIAS)
_X, _X_STRIDE, _QKV, _QKV_STRIDE = int(S.X), int(S.X_STRIDE), int(S.QKV), int(S.QKV_STRIDE)
_ATTENTION, _ATTENTION_STRIDE = int(S.ATTENTION), int(S.ATTENTION_STRIDE)
_HIDDEN, _HIDDEN_STRIDE = int(S.HIDDEN), int(S.HIDDEN_STRIDE)
_LOGITS, _LOGITS_STRIDE, _BEST = int(S.LOGITS), int(S.LOGITS_STRIDE), int(S.BEST)
_PRIVATE, _PRIVATE_STRIDE = int(S.PRIVATE), int(S.PRIVATE_STRIDE)
_SYNC, _PLAN, _PROFILE = int(S.SYNC), int(S.PLAN), int(S.PROFILE)
_NO_LOGIT = np.float32(-np.inf)


@njit(**FAST)
def _embed(st, token, position, first, end, x):
    """Columns first..end of a token's embedding (and its position's, if learned)."""
    m = i64_view(st[_EMBED], MATRIX_FIELDS)
    block, row = token // 32, token % 32
    w = m[WEIGHT] + block * m[BLOCK_BYTES]
    out = f32_view(x, st[_N_EMBD])
    if m[KIND] == FP32:
        for k in range(first, end):
            out[k] = f32_view(w + k * 128 + row * 4, 1)[0]
    else:
        scale = f32_view(m[SCALE] + token * 4, 1)[0]
        for k in range(first, end):
            if m[KIND] == INT8:
                out[k] = np.float32(i8_view(w + k // 2 * 64 + row * 2 + k % 2, 1)[0]) * scale
            else:
                group = w + k // 32 * INT4_GROUP_BYTES
                c = k % 32
                byte = group + (c // 8 * 2 + row // 16) * 64 + (row % 16 * 2 + c % 2) * 2 + c % 8 // 4
                nibble = (np.int64(i8_view(byte, 1)[0]) >> (c % 4 // 2 * 4)) & 15
                out[k] = (np.float32(nibble) * half_at(group + 512 + row * 2) + half_at(group + 576 + row * 2)) * scale
    if st[_POSITIONS] != 0:
        added = f32_view(st[_POSITIONS] + position * st[_N_EMBD] * 4, st[_N_EMBD])
        for k in range(first, end):
            out[k] += added[k]


@njit(**FAST)
def _tiles(rows, n, tiles):
    """Cut rows into runs of consecutive tokens of one sequence, at most ``T0`` long. Returns their number."""
    count, start = 0, 0
    for r in range(1, n + 1):
        if (
            r == n
            or r - start == T0
            or rows[r, R_SEQUENCE] != rows[start, R_SEQUENCE]
            or rows[r, R_POSITION] != rows[r - 1, R_POSITION] + 1
        ):
            tiles[2 * count], tiles[2 * count + 1] = start, r - start
            count += 1
            start = r
    return count


@njit(**FAST)
def _plan(st):
    """What attention and the head work on in this pass."""
    n = st[_ROWS]
    rows = i64_view(st[_ROW_TABLE], n * ROW_FIELDS).reshape(n, ROW_FIELDS)
    plan = i64_view(st[_PLAN], PLAN_INTS)
    wanted = 0
    for r in range(n):
        if rows[r, R_WANTED]:
            plan[WANTED + wanted] = r
            for f in range(ROW_FIELDS):
                plan[LAST_ROWS + wanted * ROW_FIELDS + f] = rows[r, f]
            wanted += 1
    plan[N_WANTED] = wanted
    plan[N_TILE] = _tiles(rows, n, plan[TILES : TILES + 2 * MAX_ROWS])
    last = plan[LAST_ROWS : LAST_ROWS + ROW_FIELDS * MAX_ROWS].reshape(MAX_ROWS, ROW_FIELDS)
    plan[N_LAST_TILE] = _tiles(last, wanted, plan[LAST_TILES : LAST_TILES + 2 * MAX_ROWS]) if wanted else 0


@njit(**FAST)
def _keep_wanted(st, plan):
    """Move the wanted rows of the residual stream and of the queries to the front."""
    for i in range(plan[N_WANTED]):
        r = plan[WANTED + i]
        if r != i:
            x, y = st[_X] + r * st[_X_STRIDE], st[_X] + i * st[_X_STRIDE]
            source, target = f32_view(x, st[_N_EMBD]), f32_view(y, st[_N_EMBD])
            for k in range(target.size):
                target[k] = source[k]
            q, p = st[_QKV] + r * st[_QKV_STRIDE], st[_QKV] + i * st[_QKV_STRIDE]
            source, target = f32_view(q, st[_QKV_STRIDE] // 4), f32_view(p, st[_QKV_STRIDE] // 4)
            for k in range(target.size):
                target[k] = source[k]


@njit(**FAST)
def _norm_inputs(st, matrix, n, weight, bias, private, thread, n_thread):
    eps = float_bits(np.int32(st[_EPS]))
    if n == 1:
        put_norm(st, matrix, st[_X], thread, weight, bias, eps, private + P_SCORES)
        return
    for r in range(n * thread // n_thread, n * (thread + 1) // n_thread):
        put_norm(st, matrix, st[_X] + r * st[_X_STRIDE], r, weight, bias, eps, private + P_SCORES)
    barrier(st[_SYNC], private, n_thread)


@njit(**FAST)
def _inputs(st, matrix, n, x, x_stride, private, thread, n_thread):
    if n == 1:
        put_input(st, matrix, x, thread)
        return
    for r in range(n * thread // n_thread, n * (thread + 1) // n_thread):
        put_input(st, matrix, x + r * x_stride, r)
    barrier(st[_SYNC], private, n_thread)


@njit(**FAST)
def _head(st, matrix, row0, n, private, thread, n_thread):
    """Logits of ``n`` rows and, per thread, the largest of its share."""
    first, end = block_range(matrix, thread, n_thread)
    for t in range(n):
        i64_view(private + P_BEST + t * 16, 1)[0] = first * 32
        f32_view(private + P_BEST + t * 16 + 8, 1)[0] = _NO_LOGIT
    scratch = private + P_BLOCK
    for block in range(first, end):
        block_product(st, matrix, block, row0, n, scratch)
        add_bias(matrix, block, n, scratch)
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


@njit(**FAST)
def _gather_best(st, n):
    for t in range(n):
        top, token = _NO_LOGIT, np.int64(0)
        for thread in range(st[_THREADS]):
            area = st[_PRIVATE] + thread * st[_PRIVATE_STRIDE] + P_BEST + t * 16
            value = f32_view(area + 8, 1)[0]
            if value > top:
                top, token = value, i64_view(area, 1)[0]
        i64_view(st[_BEST], n)[t] = token


@njit(**FAST)
def _clock(profile, thread, part, since):
    now = cycles()
    if thread == 0:
        profile[part] += now - since
    return now


@njit(**FAST)
def _forward(state, thread):
    st = i64_view(state, _N_FIELD)
    n_thread, sync = st[_THREADS], st[_SYNC]
    private = st[_PRIVATE] + thread * st[_PRIVATE_STRIDE]
    plan = i64_view(st[_PLAN], PLAN_INTS)
    n, n_layer, width = st[_ROWS], st[_N_LAYER], st[_N_EMBD]
    rows = i64_view(st[_ROW_TABLE], n * ROW_FIELDS).reshape(n, ROW_FIELDS)
    n_tile, tiles = plan[N_TILE], plan[TILES : TILES + 2 * MAX_ROWS]
    layers = i64_view(st[_LAYERS], n_layer * LAYER_FIELDS).reshape(n_layer, LAYER_FIELDS)
    head = i64_view(st[_HEAD], MATRIX_FIELDS)
    profile = i64_view(st[_PROFILE], _N_PART)
    clock = cycles()

    if n == 1:
        first, end = width * thread // n_thread, width * (thread + 1) // n_thread
        _embed(st, rows[0, R_TOKEN], rows[0, R_POSITION], first, end, st[_X])
    else:
        for r in range(n * thread // n_thread, n * (thread + 1) // n_thread):
            _embed(st, rows[r, R_TOKEN], rows[r, R_POSITION], 0, width, st[_X] + r * st[_X_STRIDE])
    barrier(sync, private, n_thread)
    clock = _clock(profile, thread, 0, clock)

    for i in range(n_layer):
        layer = layers[i]
        qkv, out = layer[L_QKV : L_QKV + MATRIX_FIELDS], layer[L_OUT : L_OUT + MATRIX_FIELDS]
        gate, up = layer[L_GATE : L_GATE + MATRIX_FIELDS], layer[L_UP : L_UP + MATRIX_FIELDS]
        down = layer[L_DOWN : L_DOWN + MATRIX_FIELDS]
        has_heads = layer[L_HEAD] > 0
        if has_heads:
            _norm_inputs(st, qkv, n, layer[L_NORM1], layer[L_NORM1_BIAS], private, thread, n_thread)
            clock = _clock(profile, thread, 1, clock)
            row0 = thread if n == 1 else 0
            project(st, qkv, row0, n, st[_QKV], st[_QKV_STRIDE], False, private, thread, n_thread)
            barrier(sync, private, n_thread)
            clock = _clock(profile, thread, 2, clock)
            n_item = n * layer[L_KV_HEAD]
            for item in range(n_item * thread // n_thread, n_item * (thread + 1) // n_thread):
                r, g = item // layer[L_KV_HEAD], item % layer[L_KV_HEAD]
                cache_row(st, layer, r, rows[r, R_SEQUENCE], rows[r, R_POSITION], g, private + P_BLOCK)
            barrier(sync, private, n_thread)
            clock = _clock(profile, thread, 3, clock)
        if i == n_layer - 1 and plan[N_WANTED] < n:
            # the keys and values of the other tokens are stored; nothing else of them is needed any more
            if thread == 0:
                _keep_wanted(st, plan)
            n = plan[N_WANTED]
            if n == 0:
                break
            rows = plan[LAST_ROWS : LAST_ROWS + ROW_FIELDS * MAX_ROWS].reshape(MAX_ROWS, ROW_FIELDS)
            n_tile, tiles = plan[N_LAST_TILE], plan[LAST_TILES : LAST_TILES + 2 * MAX_ROWS]
            barrier(sync, private, n_thread)
        row0 = thread if n == 1 else 0
        if has_heads:
            n_item = n_tile * layer[L_HEAD]
            for item in range(n_item * thread // n_thread, n_item * (thread + 1) // n_thread):
                h, tile = item // n_tile, item % n_tile
                attend(st, layer, rows, tiles[2 * tile], tiles[2 * tile + 1], h, private)
            warm(out, thread, n_thread)
            barrier(sync, private, n_thread)
            clock = _clock(profile, thread, 4, clock)
        if out[N_ROW] > 0:
            _inputs(st, out, n, st[_ATTENTION], st[_ATTENTION_STRIDE], private, thread, n_thread)
            project(st, out, row0, n, st[_X], st[_X_STRIDE], True, private, thread, n_thread)
            warm(up, thread, n_thread)
            barrier(sync, private, n_thread)
            clock = _clock(profile, thread, 5, clock)
        if layer[L_NEURON] > 0:
            _norm_inputs(st, up, n, layer[L_NORM2], layer[L_NORM2_BIAS], private, thread, n_thread)
            clock = _clock(profile, thread, 6, clock)
            neurons(
                st, gate, up, layer[L_GATED], st[_ACTIVATION], row0, n, st[_HIDDEN], st[_HIDDEN_STRIDE],
                private, thread, n_thread,
            )  # fmt: skip
            warm(down, thread, n_thread)
            barrier(sync, private, n_thread)
            clock = _clock(profile, thread, 7, clock)
        if down[N_ROW] > 0:
            _inputs(st, down, n, st[_HIDDEN], st[_HIDDEN_STRIDE], private, thread, n_thread)
            clock = _clock(profile, thread, 8, clock)
            project(st, down, row0, n, st[_X], st[_X_STRIDE], True, private, thread, n_thread)
            if i + 1 < n_layer:
                warm(layers[i + 1][L_QKV : L_QKV + MATRIX_FIELDS], thread, n_thread)
            else:
                warm(head, thread, n_thread)
            barrier(sync, private, n_thread)
            clock = _clock(profile, thread, 9, clock)

    if n > 0:
        _norm_inputs(st, head, n, st[_FINAL_NORM], st[_FINAL_BIAS], private, thread, n_thread)
        _head(st, head, thread if n == 1 else 0, n, private, thread, n_thread)
    barrier(sync, private, n_thread)
    clock = _clock(profile, thread, 10, clock)
    if thread == 0:
        _gather_best(st, n)


@njit(nogil=True)
def _participate(state, thread, spins):
    """Take part in passes; releases the interpreter lock.

    Thread 0 starts a pass and returns 0 when it is done; if workers sleep it returns a bit per sleeping worker instead,
    and must be called again, with ``spins`` -1, after waking them. The others work until no pass came for ``spins``
    looks, and then return to sleep.
    """
    st = i64_view(state, _N_FIELD)
    sync = st[_SYNC]
    if thread == 0:
        if spins >= 0:
            _plan(st)
            atomic_add(sync + Y_JOB, 1)
            sleeping = 0
            for t in range(1, st[_THREADS]):
                if atomic_exchange(sync + Y_PARKED + 64 * t, 0):
                    sleeping |= 1 << t
            if sleeping:
                return sleeping
        _forward(state, 0)
        return 0
    done = i64_view(st[_PRIVATE] + thread * st[_PRIVATE_STRIDE] + P_JOBS, 1)
    idle = 0
    while True:
        if atomic_load(sync + Y_JOB) > done[0]:
            done[0] += 1
            _forward(state, thread)
            idle = 0
            continue
        idle += 1
        if idle < spins:
            pause()
            continue
        # Say so before sleeping, then look once more: a pass begun meanwhile either saw it and will wake us, or not.
        atomic_exchange(sync + Y_PARKED + 64 * thread, 1)
        if atomic_load(sync + Y_JOB) == done[0] or atomic_exchange(sync + Y_PARKED + 64 * thread, 0) == 0:
            return 0
        idle = 0


def _cached(fingerprint: int) -> Any:
    """`_participate`, kept on disk for exactly these sources.

    Numba's cache looks at the time of this file only. A variable of an enclosing function is part of its key, so the
    fingerprint of all files goes in as one; otherwise a change in `tiles` would go on running the old code.
    """

    @njit(nogil=True, cache=True)
    def participate(state, thread, spins):
        if fingerprint < 0:
            return -1
        return _participate(state, thread, spins)

    return participate


def _fingerprint() -> int:
    total = 0
    for file in sorted(Path(__file__).parent.glob("*.py")):
        total = zlib.crc32(file.read_bytes(), total)
    return total


participate = _cached(_fingerprint())
