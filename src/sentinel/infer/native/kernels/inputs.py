"""The input of a matrix: rows of float32, or of int8 with a scale and a sum per group of columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .emit import F32, I8, I64, V16F, V16I, Emit
from .intrinsics import f32_view, intrinsic, never_inlined
from .layout import S
from .vector import FAST

X, X_STRIDE = int(S.INPUT), int(S.INPUT_STRIDE)
SCALE, SUM, SUM_STRIDE = int(S.INPUT_SCALE), int(S.INPUT_SUM), int(S.INPUT_SUM_STRIDE)
COLUMNS = 32  # of the input that share a scale; of 128, they cost SmolLM2-135M more perplexity
_ZERO = np.float32(0)
_TINY = float(np.float32(1e-35))  # smaller values are rounded to 0, since 127 / them would be too large a number


@njit(**FAST)
def copy_row(x_address, y_address, n, n_padded):
    """Copy ``n`` float32 and append zeros up to ``n_padded``."""
    x, y = f32_view(x_address, n), f32_view(y_address, n_padded)
    for i in range(n):
        y[i] = x[i]
    for i in range(n, n_padded):
        y[i] = _ZERO


@intrinsic
def _room_for_group(typingctx: Any) -> Any:
    """Address of 32 float32 on the stack."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(cgutils.alloca_once(builder, ir.VectorType(F32, COLUMNS)), I64)

    return types.int64(), codegen


@intrinsic
def _quantise_group(typingctx: Any, x: Any, q: Any, scale: Any, total: Any) -> Any:
    """32 float32 at ``x`` as int8 at ``q``, their float32 scale and the int32 sum of ``q``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(builder)
        x, q, scale, total = args
        values = [e.load(e.at(x, v * 64), V16F) for v in range(2)]
        sizes = [builder.and_(builder.bitcast(value, V16I), ir.Constant(V16I, [0x7FFFFFFF] * 16)) for value in values]
        larger = builder.select(builder.icmp_signed(">", *sizes), *sizes)  # in this order NaN is above infinity
        peak = builder.bitcast(e.reduce("smax", larger), F32)
        builder.store(builder.fdiv(peak, F32(127)), e.at(scale, 0), align=4)
        usable = builder.and_(
            builder.fcmp_ordered(">", peak, F32(_TINY)), builder.fcmp_ordered("<", peak, F32(math.inf))
        )
        factor = e.splat(builder.select(usable, builder.fdiv(F32(127), peak), F32(0)))
        whole = [builder.fptosi(e.rint(builder.fmul(value, factor)), V16I) for value in values]
        for v in range(2):
            builder.store(builder.trunc(whole[v], ir.VectorType(I8, 16)), e.at(q, v * 16), align=1)
        builder.store(e.reduce("add", builder.add(*whole)), e.at(total, 0), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@njit(**FAST)
def quantise(x, q, scales, sums, n):
    """Round a row of ``n`` float32 at ``x`` to int8: x = scale * q with abs(q) <= 127, one scale for every 32 columns.

    Zeros follow up to a multiple of 32 columns; ``sums`` gets the int32 sum of each group's q. Returns how many groups
    there are. A group that holds a NaN or an infinity has that as its scale, so that products with it are not finite.
    """
    never_inlined()
    whole = n // COLUMNS
    for g in range(whole):
        _quantise_group(x + g * COLUMNS * 4, q + g * COLUMNS, scales + 4 * g, sums + 4 * g)
    if n > whole * COLUMNS:
        room = _room_for_group()
        copy_row(x + whole * COLUMNS * 4, room, n - whole * COLUMNS, COLUMNS)
        _quantise_group(room, q + whole * COLUMNS, scales + 4 * whole, sums + 4 * whole)
        return whole + 1
    return whole


@njit(**FAST)
def put_floats(st, n, x, row):
    """Make row ``row`` of the input from ``n`` float32 values at ``x``, which may be there already."""
    target = st[X] + row * st[X_STRIDE]
    if x != target:
        copy_row(x, target, n, (n + 31) // 32 * 32)
