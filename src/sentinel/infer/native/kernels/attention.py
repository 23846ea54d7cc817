"""The KV cache and attention over it.

Per layer, sequence and KV head: keys in blocks of 32 positions, [D][32 positions]; values in chunks of 32 columns,
[position][32 columns]. Both are read as streams, by the same tiles as weights. float32, half precision, or int8 with a
float32 scale per position, [places] for the keys of a head and as many for its values. A layer with a window has them in a
ring, which begins again after L_PLACES positions.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .intrinsics import f32_view, float_bits, halves, i8_view, i16_view, i32_view, nearest, never_inlined
from .layout import (
    L_CAP_BITS,
    L_COS,
    L_HEAD,
    L_HEAD_DIM,
    L_K_NORM,
    L_KEY_SCALES,
    L_KEYS,
    L_KV_HEAD,
    L_KV_STRIDE,
    L_PLACES,
    L_Q_NORM,
    L_ROTARY,
    L_SCALE_BITS,
    L_SIN,
    L_VALUE_SCALES,
    L_VALUES,
    L_WHOLE_NORM,
    L_WINDOW,
    MAX_ROWS,
    P_BLOCK,
    P_SCORES,
    R_POSITION,
    R_SEQUENCE,
    S,
)
from .matrix import add_to
from .precision_fp32 import byte_block, float_block, half_block
from .vector import FAST, scale_by, soft_cap, softmax_weights, square_sum

_EPS = int(S.EPS_BITS)
_KV_BYTES, _TOO_WIDE = int(S.KV_BYTES), int(S.TOO_WIDE)
_QKV, _QKV_STRIDE = int(S.QKV), int(S.QKV_STRIDE)
_ATTENTION, _ATTENTION_STRIDE = int(S.ATTENTION), int(S.ATTENTION_STRIDE)
_LARGEST_HALF = np.float32(65504)
_LARGEST, _TINY, _LEVELS = np.float32(np.finfo(np.float32).max), np.float32(1e-35), np.float32(127)
_SMALL_HALF = np.float32(2.0**-20)  # a row without a larger value would keep 5 bits at the most


@njit(**FAST)
def _rotate(address, cos_address, sin_address, n):
    """Rotary embedding of one head (Su et al. 2021), first half with second half as in Hugging Face's Llama."""
    never_inlined()
    x = f32_view(address, 2 * n)
    cos, sin = f32_view(cos_address, n), f32_view(sin_address, n)
    for i in range(n):
        a, b = x[i], x[i + n]
        x[i] = a * cos[i] - b * sin[i]
        x[i + n] = b * cos[i] + a * sin[i]


@njit(**FAST)
def _fits_half(address, n):
    """True when half precision holds ``n`` values, zeros included."""
    x = f32_view(address, n)
    peak = np.float32(0)
    for i in range(n):
        peak = max(peak, abs(x[i]))
    return peak == 0 or _SMALL_HALF <= peak <= _LARGEST_HALF


@njit(**FAST)
def _scale_of(address, n):
    """What ``n`` values are divided by to be at most 127; NaN or infinity where one of them is."""
    bits, peak = i32_view(address, n), np.int32(0)
    for i in range(n):
        peak = max(peak, bits[i] & np.int32(0x7FFFFFFF))  # as numbers of their own, NaN is above infinity
    return float_bits(peak) / _LEVELS


@njit(**FAST)
def _steps(scale):
    """1 / ``scale``; 0 where that is no number, since such values are rounded to 0."""
    return np.float32(1) / scale if _TINY < scale <= _LARGEST else np.float32(0)


@njit(**FAST)
def _cache_bytes(layer, key, value, head, place, d):
    """A key and a value in int8, the largest number of each being 127, and their scales."""
    places, n_chunk = layer[L_PLACES], (d + 31) // 32
    of_key, of_value = _scale_of(key, d), _scale_of(value, d)
    f32_view(layer[L_KEY_SCALES] + (head * places + place) * 4, 1)[0] = of_key
    f32_view(layer[L_VALUE_SCALES] + (head * places + place) * 4, 1)[0] = of_value
    source, steps = f32_view(key, d), _steps(of_key)
    keys = i8_view(layer[L_KEYS] + (head * places + place // 32 * 32) * d + place % 32, d * 32)
    for i in range(d):
        keys[i * 32] = np.int8(nearest(source[i] * steps))
    steps = _steps(of_value)
    for chunk in range(n_chunk):
        n = min(32, d - chunk * 32)
        v = f32_view(value + chunk * 128, n)
        values = i8_view(layer[L_VALUES] + ((head * n_chunk + chunk) * places + place) * 32, n)
        for i in range(n):
            values[i] = np.int8(nearest(v[i] * steps))


@njit(**FAST)
def _norm_head(address, n, weight, eps):
    """RMS norm of one head, in place."""
    factor = np.float32(1) / np.float32(math.sqrt(square_sum(address, n) / np.float32(n) + eps))
    scale_by(address, n, factor, weight)


@njit(**FAST)
def norm_heads(st, layer, row):
    """RMS norms of one row's queries, over all heads in use, and of its keys, in place."""
    d, groups = layer[L_HEAD_DIM], layer[L_KV_HEAD]
    gs, eps = layer[L_HEAD] // groups, float_bits(np.int32(st[_EPS]))
    base, size = st[_QKV] + row * st[_QKV_STRIDE], (gs + 2) * d * 4
    queries = keys = np.float32(0)
    for g in range(groups):
        queries += square_sum(base + g * size, gs * d)
        keys += square_sum(base + g * size + gs * d * 4, d)
    of_queries = np.float32(1) / np.float32(math.sqrt(queries / np.float32(groups * gs * d) + eps))
    of_keys = np.float32(1) / np.float32(math.sqrt(keys / np.float32(groups * d) + eps))
    for g in range(groups):
        scale_by(base + g * size, gs * d, of_queries, layer[L_Q_NORM] + g * gs * d * 4)
        scale_by(base + g * size + gs * d * 4, d, of_keys, layer[L_K_NORM] + g * d * 4)


@njit(**FAST)
def cache_row(st, layer, row, sequence, position, group, scratch):
    """Norm and rotate one row's queries and key of KV head ``group`` in place; put its key and value into the cache."""
    d, gs = layer[L_HEAD_DIM], layer[L_HEAD] // layer[L_KV_HEAD]
    places, pairs = layer[L_PLACES], layer[L_ROTARY]
    base = st[_QKV] + row * st[_QKV_STRIDE] + group * (gs + 2) * d * 4
    key, value = base + gs * d * 4, base + (gs + 1) * d * 4
    if layer[L_Q_NORM] != 0 and not layer[L_WHOLE_NORM]:
        eps = float_bits(np.int32(st[_EPS]))
        for h in range(gs + 1):
            weight = layer[L_Q_NORM] if h < gs else layer[L_K_NORM]
            _norm_head(base + h * d * 4, d, weight, eps)
    if pairs != 0:
        shift = position * pairs * 4
        for h in range(gs + 1):
            _rotate(base + h * d * 4, layer[L_COS] + shift, layer[L_SIN] + shift, pairs)
    d_padded = (d + 31) // 32 * 32
    head = sequence * layer[L_KV_STRIDE] + group
    n_chunk = d_padded // 32
    place = position % places if layer[L_WINDOW] else position
    if st[_KV_BYTES] == 1:
        _cache_bytes(layer, key, value, head, place, d)
    elif st[_KV_BYTES] == 2:
        if not (_fits_half(key, d) and _fits_half(value, d)):
            st[_TOO_WIDE] = 1
        keys = i16_view(layer[L_KEYS] + (head * places + place // 32 * 32) * d * 2, d * 32)
        halves(key, scratch, d)
        source = i16_view(scratch, d)
        for i in range(d):
            keys[i * 32 + place % 32] = source[i]
        for chunk in range(n_chunk):
            to = layer[L_VALUES] + ((head * n_chunk + chunk) * places + place) * 64
            halves(value + chunk * 128, to, 32)
    else:
        keys32 = f32_view(layer[L_KEYS] + (head * places + place // 32 * 32) * d * 4, d * 32)
        source32, v = f32_view(key, d), f32_view(value, d)
        for i in range(d):
            keys32[i * 32 + place % 32] = source32[i]
        for chunk in range(n_chunk):
            values = f32_view(layer[L_VALUES] + ((head * n_chunk + chunk) * places + place) * 128, 32)
            for i in range(min(32, d - chunk * 32)):
                values[i] = v[chunk * 32 + i]


@njit(**FAST)
def _weigh(n_token, weights, stride, values, n, size, out):
    """32 columns of ``n`` values, of ``size`` bytes each, summed with the weights of every token."""
    if size == 1:
        byte_block(n_token, weights, stride, values, 32, n, 0, out, 128)
    elif size == 2:
        half_block(n_token, weights, stride, values, 64, n, 0, out, 128)
    else:
        float_block(n_token, weights, stride, values, 128, n, 0, out, 128)


@njit(**FAST)
def _multiply(n_token, rows, stride, scales, n):
    """Multiply ``n`` values of ``n_token`` rows by the same ``scales``, in place."""
    never_inlined()
    factors = f32_view(scales, n)
    for t in range(n_token):
        x = f32_view(rows + t * stride, n)
        for i in range(n):
            x[i] *= factors[i]


@njit(**FAST)
def _write_scaled(part, n_token, factors, y, y_stride, n):
    """Write ``n`` of 32 columns of ``n_token`` rows at ``part``, times the factor of each, to ``y``."""
    for t in range(n_token):
        source, target, factor = f32_view(part + t * 128, 32), f32_view(y + t * y_stride, n), factors[t]
        if n == 32:  # known to the compiler, it is two vectors
            for i in range(32):
                target[i] = source[i] * factor
        else:
            for i in range(n):
                target[i] = source[i] * factor


@njit(**FAST)
def attend(st, layer, rows, row0, n_token, head, private):
    """Causal attention of one head for ``n_token`` consecutive tokens of one sequence (Vaswani et al. 2017).

    With a window, a token sees itself and those before it within; blocks of keys that none of the tokens sees are not
    read. The ring may begin again between two blocks that are.
    """
    d, gs = layer[L_HEAD_DIM], layer[L_HEAD] // layer[L_KV_HEAD]
    places = layer[L_PLACES]
    d_padded = (d + 31) // 32 * 32
    group = head // gs
    first = rows[row0, R_POSITION]
    n_seen, window = first + n_token, layer[L_WINDOW]
    start = max(0, first - window + 1) // 32 * 32 if window else 0
    q = st[_QKV] + row0 * st[_QKV_STRIDE] + (group * (gs + 2) + head - group * gs) * d * 4
    turn = (start // places + 1) * places if window else places  # the position at which the ring begins again
    cached = (rows[row0, R_SEQUENCE] * layer[L_KV_STRIDE] + group) * places
    size = st[_KV_BYTES]
    scores = private + P_SCORES
    stride = (places + 32) * 4
    for position in range(start, n_seen, 32):
        place = position - turn if position >= turn else position - turn + places
        keys, s = layer[L_KEYS] + (cached + place) * d * size, scores + (position - start) * 4
        if size == 1:
            byte_block(n_token, q, st[_QKV_STRIDE], keys, 32, d, 0, s, stride)
            _multiply(n_token, s, stride, layer[L_KEY_SCALES] + (cached + place) * 4, 32)
        elif size == 2:
            half_block(n_token, q, st[_QKV_STRIDE], keys, 64, d, 0, s, stride)
        else:
            float_block(n_token, q, st[_QKV_STRIDE], keys, 128, d, 0, s, stride)
    factors = f32_view(private + P_BLOCK + n_token * 128, n_token)
    scale, cap = float_bits(np.int32(layer[L_SCALE_BITS])), float_bits(np.int32(layer[L_CAP_BITS]))
    for t in range(n_token):
        s, seen = scores + t * stride, first + t + 1
        from_ = max(0, seen - window) - start if window else 0
        if cap > np.float32(0):
            soft_cap(s, seen - start, cap / scale)  # of the scores before their scale
        factors[t] = softmax_weights(s, from_, seen - start, n_token - 1 - t, scale)
    before = min(n_seen, turn) - start  # of the values that are read, those before the ring begins again
    if size == 1:
        scales = layer[L_VALUE_SCALES] + cached * 4
        _multiply(n_token, scores, stride, scales + (start - turn + places) * 4, before)
        if n_seen > turn:
            _multiply(n_token, scores + before * 4, stride, scales, n_seen - turn)
    for chunk in range(d_padded // 32):
        out = private + P_BLOCK
        values = layer[L_VALUES] + (cached * (d_padded // 32) + chunk * places) * 32 * size
        _weigh(n_token, scores, stride, values + (start - turn + places) * 32 * size, before, size, out)
        n = min(32, d - chunk * 32)
        if n_seen > turn:
            rest = private + P_BLOCK + MAX_ROWS * 128
            _weigh(n_token, scores + before * 4, stride, values, n_seen - turn, size, rest)
            for t in range(n_token):
                add_to(rest + t * 128, out + t * 128, n)
        target = st[_ATTENTION] + row0 * st[_ATTENTION_STRIDE] + (head * d + chunk * 32) * 4
        _write_scaled(out, n_token, factors, target, st[_ATTENTION_STRIDE], n)
