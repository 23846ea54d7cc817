"""What Numba lacks and the decode step needs: memory by address, atomics for the thread pool, cycle counts.

Everything takes and returns 64-bit addresses and integers, so that one compiled function can walk tables of weights
whose sizes differ per layer. Addresses come only from buffers that the Python side owns and has checked.
"""

from __future__ import annotations

import sys
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

from .cpu import HAS_HALF, IS_X86

intrinsic: Any = _intrinsic  # its type says nothing of what it returns: a function without the typing context

carray: Any = getattr(numba, "carray")  # noqa: B009 - exported, but its stub does not say so
_I64 = ir.IntType(64)
_PTR = ir.PointerType()


_YIELD_SYMBOL = None if sys.platform == "win32" else "sched_yield"


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _PTR)


@intrinsic
def _void_pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), codegen


@intrinsic
def never_inlined(typingctx: Any) -> Any:
    """Keep the function that calls this one copy: inlined into several callers, LLVM may sum in another order in each,
    and the bits of a token would depend on how many others are in its pass."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@njit(inline="always")
def f32_view(address, n):
    """The ``n`` float32 values at ``address`` as an array (no copy)."""
    return carray(_void_pointer(address), n, np.float32)


@njit(inline="always")
def i16_view(address, n):
    """The ``n`` int16 values at ``address`` as an array (no copy)."""
    return carray(_void_pointer(address), n, np.int16)


@njit(inline="always")
def i32_view(address, n):
    """The ``n`` int32 values at ``address`` as an array (no copy)."""
    return carray(_void_pointer(address), n, np.int32)


@njit(inline="always")
def i64_view(address, n):
    """The ``n`` int64 values at ``address`` as an array (no copy)."""
    return carray(_void_pointer(address), n, np.int64)


@njit(inline="always")
def i64_table(address, n, m):
    """The ``n`` x ``m`` int64 values at ``address`` as an array (no copy)."""
    return carray(_void_pointer(address), (n, m), np.int64)


@njit(inline="always")
def i8_view(address, n):
    """The ``n`` int8 values at ``address`` as an array (no copy)."""
    return carray(_void_pointer(address), n, np.int8)


def floats_of_halves(builder: Any, bits: Any) -> Any:
    """A vector of IEEE half-precision values, given as int16, as float32."""
    n = bits.type.count
    floats, ints = ir.VectorType(ir.FloatType(), n), ir.VectorType(ir.IntType(32), n)
    if HAS_HALF:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), n)), floats)
    wide = builder.zext(bits, ints)
    size = builder.shl(builder.and_(wide, ir.Constant(ints, [0x7FFF] * n)), ir.Constant(ints, [13] * n))
    # the exponents' biases differ by 112; a product by 2^112 also makes subnormal values normal
    value = builder.fmul(builder.bitcast(size, floats), ir.Constant(floats, [2.0**112] * n))
    special = builder.icmp_unsigned(">=", size, ir.Constant(ints, [0x0F800000] * n))  # infinity and NaN
    infinite = builder.or_(size, ir.Constant(ints, [0x7F800000] * n))
    size = builder.select(special, infinite, builder.bitcast(value, ints))
    sign = builder.shl(builder.and_(wide, ir.Constant(ints, [0x8000] * n)), ir.Constant(ints, [16] * n))
    return builder.bitcast(builder.or_(size, sign), floats)


def _halves_of_floats(builder: Any, floats: Any) -> Any:
    """A vector of float32 rounded to half precision (ties to even), as int16."""
    n = floats.type.count
    ints, shorts = ir.VectorType(ir.IntType(32), n), ir.VectorType(ir.IntType(16), n)
    if HAS_HALF:
        return builder.bitcast(builder.fptrunc(floats, ir.VectorType(ir.HalfType(), n)), shorts)

    def constant(value: int) -> Any:
        return ir.Constant(ints, [value] * n)

    bits = builder.bitcast(floats, ints)
    size = builder.and_(bits, constant(0x7FFFFFFF))
    small = builder.fmul(builder.bitcast(size, floats.type), ir.Constant(floats.type, [2.0**-112] * n))
    scaled = builder.bitcast(small, ints)
    odd = builder.and_(builder.lshr(scaled, constant(13)), constant(1))
    rounded = builder.lshr(builder.add(scaled, builder.add(odd, constant(0xFFF))), constant(13))
    half = builder.select(builder.icmp_unsigned(">", rounded, constant(0x7C00)), constant(0x7C00), rounded)
    half = builder.select(builder.icmp_unsigned(">", size, constant(0x7F800000)), constant(0x7E00), half)  # NaN
    sign = builder.and_(builder.lshr(bits, constant(16)), constant(0x8000))
    return builder.trunc(builder.or_(half, sign), shorts)


@intrinsic
def half_at(typingctx: Any, address: Any) -> Any:
    """The IEEE half-precision value at ``address`` as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # as a vector: a scalar conversion may call a run-time library where a vector uses the hardware's
        bits = builder.load(_pointer(builder, args[0]), align=2, typ=ir.IntType(16))
        zeros = ir.Constant(ir.VectorType(ir.IntType(16), 8), None)
        vector = builder.insert_element(zeros, bits, ir.IntType(32)(0))
        return builder.extract_element(floats_of_halves(builder, vector), ir.IntType(32)(0))

    return types.float32(types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at ``address``; later reads see what its writer wrote before (acquire)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8, typ=_I64)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add ``value`` to the int64 at ``address``; returns what was there before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_exchange(typingctx: Any, address: Any, value: Any) -> Any:
    """Write ``value`` at ``address``; returns what was there before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", _pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the core that this is a spin loop (x86 ``pause``); nothing elsewhere."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if IS_X86:
            fn = builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), ()))
            builder.call(fn, ())
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typingctx: Any) -> Any:
    """Let another thread have the core (POSIX ``sched_yield``): spinning must not starve the thread waited for."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _YIELD_SYMBOL is not None:
            fnty = ir.FunctionType(ir.IntType(32), ())
            builder.call(cgutils.get_or_insert_function(builder.module, fnty, _YIELD_SYMBOL), ())
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nap(typingctx: Any, microseconds: Any) -> Any:
    """Sleep (POSIX ``usleep``): a core that has nothing to run takes a thread that waits for another core."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _YIELD_SYMBOL is not None:
            int32 = ir.IntType(32)
            fn = cgutils.get_or_insert_function(builder.module, ir.FunctionType(int32, (int32,)), "usleep")
            builder.call(fn, (builder.trunc(args[0], int32),))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def prefetch_line(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at ``address``; harmless where nothing is mapped."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        int32 = ir.IntType(32)
        fnty = ir.FunctionType(ir.VoidType(), (_PTR, int32, int32, int32))
        fn = cgutils.get_or_insert_function(builder.module, fnty, "llvm.prefetch.p0")
        builder.call(fn, (_pointer(builder, args[0]), int32(0), int32(3), int32(1)))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def cycles(typingctx: Any) -> Any:
    """The time-stamp counter (x86), 0 elsewhere: reading it may be forbidden there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not IS_X86:
            return _I64(0)
        fn = builder.module.declare_intrinsic("llvm.readcyclecounter", (), ir.FunctionType(_I64, ()))
        return builder.call(fn, ())

    return types.int64(), codegen


@intrinsic
def float_bits(typingctx: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def nearest(typingctx: Any, value: Any) -> Any:
    """A float32 rounded to the nearest whole number, ties to even."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FloatType()
        fn = builder.module.declare_intrinsic("llvm.rint", (kind,), ir.FunctionType(kind, (kind,)))
        return builder.call(fn, args)

    return types.float32(types.float32), codegen


@intrinsic
def _eight_halves(typingctx: Any, source: Any, target: Any) -> Any:
    """Round 8 float32 at ``source`` to half precision at ``target``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        floats = builder.load(_pointer(builder, args[0]), align=4, typ=ir.VectorType(ir.FloatType(), 8))
        builder.store(_halves_of_floats(builder, floats), _pointer(builder, args[1]), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@njit
def halves(source, target, n):
    """Round ``n`` float32 at ``source`` to IEEE half precision at ``target``; both have room for a multiple of 8."""
    for i in range(0, n, 8):
        _eight_halves(source + i * 4, target + i * 2)
