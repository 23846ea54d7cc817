"""A whole pass of tokens through the model: from token numbers to logits and the likeliest token.

Every thread runs `forward` with its own number and takes its share of each part; between parts they meet at a
barrier. With one token, every thread makes the (small) inputs of a matrix for itself instead of waiting for another.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .attention import attend, cache_row, norm_heads
from .ends import embed, gather_best, head_logits
from .fusion import fuse, keep
from .intrinsics import cycles, float_bits, i64_table, i64_view
from .layout import (
    F_OTHER,
    FUSION_FIELDS,
    L_ACTIVATION,
    L_ADAPTER,
    L_DOWN,
    L_GATE,
    L_GATED,
    L_HEAD,
    L_KEEP,
    L_KV_HEAD,
    L_NEURON,
    L_NORM1,
    L_NORM1_BIAS,
    L_NORM2,
    L_NORM2_BIAS,
    L_OUT,
    L_POST1,
    L_POST1_BIAS,
    L_POST2,
    L_POST2_BIAS,
    L_QKV,
    L_SKIP,
    L_UP,
    L_WHOLE_NORM,
    LAST_ROWS,
    LAST_TILES,
    LAYER_FIELDS,
    MATRIX_FIELDS,
    MAX_ROWS,
    N_LAST_TILE,
    N_ROW,
    N_TILE,
    N_WANTED,
    P_BLOCK,
    P_SCORES,
    PLAN_INTS,
    R_POSITION,
    R_SEQUENCE,
    R_TOKEN,
    ROW_FIELDS,
    TILES,
    S,
)
from .matrix import add_to, neurons, project, put_inputs, put_norm, warm
from .names import Part
from .plan import keep_wanted
from .sync import barrier, next_item
from .vector import FAST, normalise

_N_FIELD, _N_PART = int(S.N_FIELD), len(Part)
_THREADS, _N_LAYER, _N_EMBD = int(S.THREADS), int(S.N_LAYER), int(S.N_EMBD)
_EPS, _ROWS = int(S.EPS_BITS), int(S.N_ROW)
_LAYERS, _ROW_TABLE, _HEAD = int(S.LAYERS), int(S.ROWS), int(S.HEAD)
_FINAL_NORM, _FINAL_BIAS = int(S.FINAL_NORM), int(S.FINAL_NORM_BIAS)
_X, _X_STRIDE, _QKV, _QKV_STRIDE = int(S.X), int(S.X_STRIDE), int(S.QKV), int(S.QKV_STRIDE)
_ATTENTION, _ATTENTION_STRIDE = int(S.ATTENTION), int(S.ATTENTION_STRIDE)
_HIDDEN, _HIDDEN_STRIDE = int(S.HIDDEN), int(S.HIDDEN_STRIDE)
_EMBED, _POSITIONS, _N_BASELINE = int(S.EMBED), int(S.POSITIONS), int(S.N_BASELINE)
_BASELINE_EMBED, _BASELINE_POSITIONS = int(S.BASELINE_EMBED), int(S.BASELINE_POSITIONS)
_BASELINE_KEEP = int(S.BASELINE_KEEP)
_OUTPUT, _PARALLEL, _LAYERNORM = int(S.OUTPUT), int(S.PARALLEL), int(S.LAYERNORM)
_PRIVATE, _PRIVATE_STRIDE = int(S.PRIVATE), int(S.PRIVATE_STRIDE)
_SYNC, _PLAN, _PROFILE = int(S.SYNC), int(S.PLAN), int(S.PROFILE)
_PART_EMBED, _PART_HEAD, _PART_FUSE = int(Part.EMBED), int(Part.HEAD), int(Part.FUSE)
_PART_NORM, _PART_QKV, _PART_CACHE = int(Part.NORM), int(Part.QKV), int(Part.CACHE)
_PART_ATTENTION, _PART_OUT = int(Part.ATTENTION), int(Part.OUT)
_PART_NORM2, _PART_UP = int(Part.NORM2), int(Part.UP)
_PART_QUANTISE, _PART_DOWN = int(Part.QUANTISE), int(Part.DOWN)


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
def _clock(st, thread, part, since):
    """Count the cycles since ``since`` as those of ``part`` (first thread only); returns the time now."""
    now = cycles()
    if thread == 0:
        i64_view(st[_PROFILE], _N_PART)[part] += now - since
    return now


@njit(**FAST)
def _embed_rows(st, table, positions, rows, n, private, thread, n_thread):
    width = st[_N_EMBD]
    if n == 1:
        first, end = width * thread // n_thread, width * (thread + 1) // n_thread
        embed(st, table, positions, rows[0, R_TOKEN], rows[0, R_POSITION], first, end, st[_X])
    else:
        for r in range(n * thread // n_thread, n * (thread + 1) // n_thread):
            embed(st, table, positions, rows[r, R_TOKEN], rows[r, R_POSITION], 0, width, st[_X] + r * st[_X_STRIDE])
    barrier(st[_SYNC], private, n_thread)


@njit(**FAST)
def _fill_cache(st, layer, rows, n, private, thread, n_thread, clock):
    """Queries, keys and values of ``n`` rows; keys and values go into the cache."""
    qkv = layer[L_QKV : L_QKV + MATRIX_FIELDS]
    _norm_inputs(st, qkv, n, layer[L_NORM1], layer[L_NORM1_BIAS], private, thread, n_thread)
    clock = _clock(st, thread, _PART_NORM, clock)
    row0 = thread if n == 1 else 0
    project(st, qkv, row0, n, st[_QKV], st[_QKV_STRIDE], False, private, thread, n_thread)
    barrier(st[_SYNC], private, n_thread)
    clock = _clock(st, thread, _PART_QKV, clock)
    if layer[L_WHOLE_NORM]:
        for r in range(n * thread // n_thread, n * (thread + 1) // n_thread):
            norm_heads(st, layer, r)
        barrier(st[_SYNC], private, n_thread)
    n_item = n * layer[L_KV_HEAD]
    for item in range(n_item * thread // n_thread, n_item * (thread + 1) // n_thread):
        r, g = item // layer[L_KV_HEAD], item % layer[L_KV_HEAD]
        cache_row(st, layer, r, rows[r, R_SEQUENCE], rows[r, R_POSITION], g, private + P_BLOCK)
    barrier(st[_SYNC], private, n_thread)
    return _clock(st, thread, _PART_CACHE, clock)


@njit(**FAST)
def _attend_rows(st, layer, rows, n_tile, tiles, private, thread, n_thread, clock):
    """Outputs of all heads, in runs of consecutive tokens."""
    n_item = n_tile * layer[L_HEAD]
    item = next_item(st[_SYNC], private, n_tile == 1, n_item, -1, thread, n_thread)
    while item >= 0:
        h, tile = item // n_tile, item % n_tile
        attend(st, layer, rows, tiles[2 * tile], tiles[2 * tile + 1], h, private)
        item = next_item(st[_SYNC], private, n_tile == 1, n_item, item, thread, n_thread)
    warm(layer[L_OUT : L_OUT + MATRIX_FIELDS], thread, n_thread)
    barrier(st[_SYNC], private, n_thread)
    return _clock(st, thread, _PART_ATTENTION, clock)


@njit(**FAST)
def _add_outputs(st, matrix, n, post, post_bias, private, thread, n_thread):
    """Add what ``matrix`` makes of its input to the residual stream; ``post`` are the weights of a norm between, or 0."""
    row0 = thread if n == 1 else 0
    if post == 0:
        project(st, matrix, row0, n, st[_X], st[_X_STRIDE], True, private, thread, n_thread)
        return
    project(st, matrix, row0, n, st[_OUTPUT], st[_X_STRIDE], False, private, thread, n_thread)
    barrier(st[_SYNC], private, n_thread)
    width, eps, scratch = st[_N_EMBD], float_bits(np.int32(st[_EPS])), private + P_SCORES
    if n == 1:  # every thread norms the row for itself, and adds its share of the columns
        first, end = width * thread // n_thread, width * (thread + 1) // n_thread
        normalise(st[_OUTPUT], scratch, width, post, post_bias, st[_LAYERNORM], eps)
        add_to(scratch + first * 4, st[_X] + first * 4, end - first)
        return
    for r in range(n * thread // n_thread, n * (thread + 1) // n_thread):
        normalise(st[_OUTPUT] + r * st[_X_STRIDE], scratch, width, post, post_bias, st[_LAYERNORM], eps)
        add_to(scratch, st[_X] + r * st[_X_STRIDE], width)


@njit(**FAST)
def _out_projection(st, layer, n, private, thread, n_thread, clock):
    out = layer[L_OUT : L_OUT + MATRIX_FIELDS]
    put_inputs(st, out, n, st[_ATTENTION], st[_ATTENTION_STRIDE], private, thread, n_thread)
    _add_outputs(st, out, n, layer[L_POST1], layer[L_POST1_BIAS], private, thread, n_thread)
    warm(layer[L_UP : L_UP + MATRIX_FIELDS], thread, n_thread)
    barrier(st[_SYNC], private, n_thread)
    return _clock(st, thread, _PART_OUT, clock)


@njit(**FAST)
def _neurons(st, layer, n, private, thread, n_thread, clock):
    """Activations of the MLP, from the residual stream as it is."""
    gate, up = layer[L_GATE : L_GATE + MATRIX_FIELDS], layer[L_UP : L_UP + MATRIX_FIELDS]
    row0 = thread if n == 1 else 0
    if layer[L_NEURON] > 0:
        _norm_inputs(st, up, n, layer[L_NORM2], layer[L_NORM2_BIAS], private, thread, n_thread)
        clock = _clock(st, thread, _PART_NORM2, clock)
        neurons(
            st, gate, up, layer[L_GATED], layer[L_ACTIVATION], row0, n, st[_HIDDEN], st[_HIDDEN_STRIDE],
            private, thread, n_thread,
        )  # fmt: skip
        warm(layer[L_DOWN : L_DOWN + MATRIX_FIELDS], thread, n_thread)
        barrier(st[_SYNC], private, n_thread)
        clock = _clock(st, thread, _PART_UP, clock)
    return clock


@njit(**FAST)
def _down_projection(st, layer, following, n, private, thread, n_thread, clock):
    """``following`` is the matrix that is read next."""
    down = layer[L_DOWN : L_DOWN + MATRIX_FIELDS]
    if down[N_ROW] > 0:
        put_inputs(st, down, n, st[_HIDDEN], st[_HIDDEN_STRIDE], private, thread, n_thread)
        clock = _clock(st, thread, _PART_QUANTISE, clock)
        _add_outputs(st, down, n, layer[L_POST2], layer[L_POST2_BIAS], private, thread, n_thread)
        warm(following, thread, n_thread)
        barrier(st[_SYNC], private, n_thread)
        clock = _clock(st, thread, _PART_DOWN, clock)
    return clock


@njit(**FAST)
def _finish_layer(st, layer, following, n, private, thread, n_thread, clock):
    """From the outputs of the heads to the end of a layer. Parallel halves read the stream before either adds to it."""
    if st[_PARALLEL]:
        clock = _neurons(st, layer, n, private, thread, n_thread, clock)
    if layer[L_OUT + N_ROW] > 0:
        clock = _out_projection(st, layer, n, private, thread, n_thread, clock)
    if not st[_PARALLEL]:
        clock = _neurons(st, layer, n, private, thread, n_thread, clock)
    return _down_projection(st, layer, following, n, private, thread, n_thread, clock)


@njit(**FAST)
def _baseline(st, layers, rows, n, n_tile, tiles, private, thread, n_thread, clock):
    """Take ``n`` rows through the layers of the baseline; the states that the model borrows are kept."""
    _embed_rows(st, st[_BASELINE_EMBED], st[_BASELINE_POSITIONS], rows, n, private, thread, n_thread)
    clock = _clock(st, thread, _PART_EMBED, clock)
    first, end = st[_N_LAYER], st[_N_LAYER] + st[_N_BASELINE]
    for i in range(first, end):
        layer = layers[i]
        keep(st, layer[L_KEEP], n, private, thread, n_thread)
        clock = _clock(st, thread, _PART_FUSE, clock)
        if layer[L_HEAD] > 0:
            clock = _fill_cache(st, layer, rows, n, private, thread, n_thread, clock)
            clock = _attend_rows(st, layer, rows, n_tile, tiles, private, thread, n_thread, clock)
        following = layers[i + 1 if i + 1 < end else 0][L_QKV : L_QKV + MATRIX_FIELDS]
        clock = _finish_layer(st, layer, following, n, private, thread, n_thread, clock)
    keep(st, st[_BASELINE_KEEP], n, private, thread, n_thread)
    return _clock(st, thread, _PART_FUSE, clock)


@njit(**FAST)
def _borrow(st, layer, n, private, thread, n_thread, clock):
    """Keep the input of a layer for a later one, and add to it what is borrowed from other states, where any of it is."""
    if layer[L_KEEP] == 0 and layer[L_SKIP + F_OTHER] == 0 and layer[L_ADAPTER + F_OTHER] == 0:
        return clock
    keep(st, layer[L_KEEP], n, private, thread, n_thread)
    fuse(st, layer[L_SKIP : L_SKIP + FUSION_FIELDS], n, private, thread, n_thread)
    fuse(st, layer[L_ADAPTER : L_ADAPTER + FUSION_FIELDS], n, private, thread, n_thread)
    return _clock(st, thread, _PART_FUSE, clock)


@njit(**FAST)
def forward(state, thread):
    """One thread's part of a pass; ``state`` is the address of the state."""
    st = i64_view(state, _N_FIELD)
    n_thread = st[_THREADS]
    private = st[_PRIVATE] + thread * st[_PRIVATE_STRIDE]
    plan = i64_view(st[_PLAN], PLAN_INTS)
    n, n_layer = st[_ROWS], st[_N_LAYER]
    rows = i64_table(st[_ROW_TABLE], n, ROW_FIELDS)
    n_tile, tiles = plan[N_TILE], plan[TILES : TILES + 2 * MAX_ROWS]
    layers = i64_table(st[_LAYERS], n_layer + st[_N_BASELINE], LAYER_FIELDS)
    head = i64_view(st[_HEAD], MATRIX_FIELDS)
    clock = cycles()
    if st[_N_BASELINE] > 0:
        clock = _baseline(st, layers, rows, n, n_tile, tiles, private, thread, n_thread, clock)
    _embed_rows(st, st[_EMBED], st[_POSITIONS], rows, n, private, thread, n_thread)
    clock = _clock(st, thread, _PART_EMBED, clock)
    for i in range(n_layer):
        layer = layers[i]
        clock = _borrow(st, layer, n, private, thread, n_thread, clock)
        if layer[L_HEAD] > 0:
            clock = _fill_cache(st, layer, rows, n, private, thread, n_thread, clock)
        if i == n_layer - 1 and plan[N_WANTED] < n:
            # the keys and values of the other tokens are stored; nothing else of them is needed any more
            if thread == 0:
                keep_wanted(st, plan)
            n = plan[N_WANTED]
            if n == 0:
                break
            rows = i64_table(st[_PLAN] + 8 * LAST_ROWS, MAX_ROWS, ROW_FIELDS)
            n_tile, tiles = plan[N_LAST_TILE], plan[LAST_TILES : LAST_TILES + 2 * MAX_ROWS]
            barrier(st[_SYNC], private, n_thread)
        if layer[L_HEAD] > 0:
            clock = _attend_rows(st, layer, rows, n_tile, tiles, private, thread, n_thread, clock)
        following = layers[i + 1][L_QKV : L_QKV + MATRIX_FIELDS] if i + 1 < n_layer else head
        clock = _finish_layer(st, layer, following, n, private, thread, n_thread, clock)
    if n > 0:
        _norm_inputs(st, head, n, st[_FINAL_NORM], st[_FINAL_BIAS], private, thread, n_thread)
        head_logits(st, head, thread if n == 1 else 0, n, private, thread, n_thread)
    barrier(st[_SYNC], private, n_thread)
    _clock(st, thread, _PART_HEAD, clock)
    if thread == 0:
        gather_best(st, n)
