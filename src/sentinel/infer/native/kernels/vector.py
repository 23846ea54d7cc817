"""Row-wise arithmetic: norms, activations, softmax. Plain loops that LLVM vectorises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from .intrinsics import f32_view, float_bits, nearest, never_inlined
from .names import Activation

# Sums may be taken in any order (several lanes at once); NaN and infinity keep their meaning.
FAST: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
EXACT: dict[str, Any] = {"error_model": "numpy"}

_F = np.float32
_ONE = _F(1)
_TWO = _F(2)
_LOG2E = _F(1.44269504)
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_EXP_LOW, _EXP_HIGH = _F(-87.0), _F(88.0)
_E0, _E1, _E2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E3, _E4, _E5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_GELU_A, _GELU_B = _F(-2 * math.sqrt(2 / math.pi)), _F(-2 * math.sqrt(2 / math.pi) * 0.044715)
_HALF, _SQRT_HALF = _F(0.5), _F(math.sqrt(0.5))
_ZERO = _F(0)
_BIAS, _SHIFT = np.int32(127), np.int32(23)
_GELU_NEW, _GELU, _SILU = int(Activation.GELU_NEW), int(Activation.GELU), int(Activation.SILU)


@njit(**EXACT)
def exp32(x):
    """exp(x) in float32 to 2 units in the last place (the polynomial of Cephes' expf); 0 below -87."""
    y = min(max(x, _EXP_LOW), _EXP_HIGH)
    n = nearest(y * _LOG2E)
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    p = p * r * r + r + _ONE
    scale = float_bits((np.int32(n) + _BIAS) << _SHIFT)
    value = p * scale
    return value if x >= _EXP_LOW else (_ZERO if x < _EXP_LOW else x)


@njit(**EXACT)
def tanh32(x):
    """tanh(x) in float32, to about 1e-7."""
    return _ONE - _TWO / (exp32(_TWO * x) + _ONE)


@njit(**FAST)
def soft_cap(address, n, cap):
    """cap * tanh(x / cap) of ``n`` values, in place."""
    never_inlined()
    x, inverse = f32_view(address, n), _ONE / cap
    for i in range(n):
        x[i] = cap * tanh32(x[i] * inverse)


@njit(**FAST)
def softmax_weights(address, first, n, n_zero, scale):
    """exp(scale * (s - max)) of the scores from ``first`` to ``n``, in place; those before and the next ``n_zero`` after
    become 0. Returns 1 / their sum."""
    never_inlined()
    s = f32_view(address, n + n_zero)
    top = s[first]
    for i in range(first, n):
        top = max(top, s[i])
    total = _ZERO
    for i in range(first):
        s[i] = _ZERO
    for i in range(first, n):
        e = exp32((s[i] - top) * scale)
        s[i] = e
        total += e
    for i in range(n, n + n_zero):
        s[i] = _ZERO
    return _ONE / total


@njit(**FAST)
def square_sum(address, n):
    """Sum of the squares of ``n`` values."""
    never_inlined()
    x = f32_view(address, n)
    total = _ZERO
    for i in range(n):
        total += x[i] * x[i]
    return total


@njit(**FAST)
def scale_by(address, n, factor, weight_address):
    """Multiply ``n`` values by ``factor`` and by weights, in place."""
    never_inlined()
    x, weight = f32_view(address, n), f32_view(weight_address, n)
    for i in range(n):
        x[i] = x[i] * factor * weight[i]


@njit(**FAST)
def activate(address, n, activation):
    """An activation function of ``n`` values, in place; ``activation`` is a number of `Activation`."""
    never_inlined()
    x = f32_view(address, n)
    if activation == _GELU_NEW:
        for i in range(n):
            v = x[i]
            x[i] = v / (_ONE + exp32(v * (_GELU_A + _GELU_B * v * v)))
    elif activation == _GELU:
        for i in range(n):
            v = x[i]
            x[i] = _HALF * v * (_ONE + _F(math.erf(v * _SQRT_HALF)))
    elif activation == _SILU:
        for i in range(n):
            v = x[i]
            x[i] = v / (_ONE + exp32(-v))
    else:
        for i in range(n):
            x[i] = max(x[i], _ZERO)


@njit(**FAST)
def normalise(x_address, y_address, n, weight_address, bias_address, layernorm, eps):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) of one row."""
    never_inlined()
    x, y = f32_view(x_address, n), f32_view(y_address, n)
    weight = f32_view(weight_address, n)
    count = _F(n)
    mean = _ZERO
    if layernorm:
        for i in range(n):
            mean += x[i]
        mean /= count
    square = _ZERO
    for i in range(n):
        d = x[i] - mean
        square += d * d
    factor = _ONE / _F(math.sqrt(square / count + eps))
    if layernorm:
        bias = f32_view(bias_address, n)
        for i in range(n):
            y[i] = (x[i] - mean) * factor * weight[i] + bias[i]
    else:
        for i in range(n):
            y[i] = x[i] * factor * weight[i]
