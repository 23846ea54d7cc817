"""Row-wise arithmetic: norms, activations, softmax. Plain loops that LLVM vectorises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .emit import F32, I64, V16F, Emit
from .intrinsics import f32_view, float_bits, intrinsic, nearest, never_inlined
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
_ERF_P, _ERF1, _ERF2 = _F(0.3275911), _F(0.254829592), _F(-0.284496736)
_ERF3, _ERF4, _ERF5 = _F(1.421413741), _F(-1.453152027), _F(1.061405429)
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


@njit(**EXACT)
def erf32(x):
    """erf(x) in float32, to 5e-7 (Abramowitz and Stegun 7.1.26); unlike the C library's, LLVM does 16 at once."""
    size = abs(x)
    t = _ONE / (_ONE + _ERF_P * size)
    rest = ((((_ERF5 * t + _ERF4) * t + _ERF3) * t + _ERF2) * t + _ERF1) * t * exp32(-x * x)
    return _ONE - rest if x >= _ZERO else rest - _ONE


@njit(**FAST)
def soft_cap(address, n, cap):
    """cap * tanh(x / cap) of ``n`` values, in place."""
    never_inlined()
    x, inverse = f32_view(address, n), _ONE / cap
    for i in range(n):
        x[i] = cap * tanh32(x[i] * inverse)


@intrinsic
def _largest_of_vectors(typingctx: Any, address: Any, n: Any) -> Any:
    """The largest of ``n`` >= 16 float32, NaN left out."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(builder)
        address, n = args

        def join(at: Any) -> None:
            x, top = e.load(e.at(address, builder.shl(at, I64(2))), V16F), builder.load(tops, typ=V16F)
            builder.store(builder.select(builder.fcmp_ordered(">", x, top), x, top), tops)

        tops = cgutils.alloca_once(builder, V16F)
        builder.store(ir.Constant(V16F, [-math.inf] * 16), tops)
        last = builder.sub(n, I64(16))
        with cgutils.for_range_slice(builder, I64(0), last, I64(16), I64) as (at, _):
            join(at)
        join(last)  # some of it a second time
        fnty = ir.FunctionType(F32, (V16F,))
        fn = cgutils.get_or_insert_function(builder.module, fnty, "llvm.vector.reduce.fmax.v16f32")
        return builder.call(fn, (builder.load(tops, typ=V16F),))

    return types.float32(types.int64, types.int64), codegen


@njit(**FAST)
def _largest(address, n):
    """The largest of ``n`` float32, NaN left out."""
    if n >= 16:
        return _largest_of_vectors(address, n)
    x = f32_view(address, n)
    top = x[0]
    for i in range(n):
        top = max(top, x[i])
    return top


@njit(**FAST)
def softmax_weights(address, first, n, n_zero, scale):
    """exp(scale * (s - max)) of the scores from ``first`` to ``n``, in place; those before and the next ``n_zero`` after
    become 0. Returns 1 / their sum."""
    never_inlined()
    # Counted from 0: from elsewhere Numba looks at each index whether it is negative, and LLVM takes them one by one.
    before, s, after = (
        f32_view(address, first),
        f32_view(address + 4 * first, n - first),
        f32_view(address + 4 * n, n_zero),
    )
    top = _largest(address + 4 * first, n - first)
    for i in range(before.size):
        before[i] = _ZERO
    for i in range(s.size):
        s[i] = exp32((s[i] - top) * scale)
    total = _ZERO
    for i in range(s.size):  # apart: LLVM would do both one by one
        total += s[i]
    for i in range(after.size):
        after[i] = _ZERO
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
            x[i] = _HALF * v * (_ONE + erf32(v * _SQRT_HALF))
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
