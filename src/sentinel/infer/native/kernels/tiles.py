"""The inner loops, written as LLVM vector code: a tile of T tokens times a block of 32 rows.

One block holds 32 rows of a matrix, column after column (`packing` makes it), so that a row's products never need
adding across a vector, every block is one stream of memory, and leaving out the last rows or columns (a smaller
pruning level) is only a smaller count. The same tile serves decode (T = 1), batches and prefill: T = 1 is bound by
memory, larger tiles by arithmetic.

Vectors are 16 lanes of 32 bits in the source; LLVM splits them for narrower machines. Only the number of tokens per
tile (how many sums fit into registers) and the int16 dot product depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .cpu import CPU_FEATURES, HAS_AVX512, TILE_TOKENS
from .intrinsics import floats_of_halves
from .layout import GROUP, INT4_GROUP_BYTES, INT4_NIBBLE_BYTES

_PREFETCH_BYTES = 2048  # how far ahead of a one-token tile its weights are asked for

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_PTR = ir.PointerType()
_F32 = ir.FloatType()
_V16F = ir.VectorType(_F32, 16)
_V16I = ir.VectorType(_I32, 16)
_V32S = ir.VectorType(_I16, 32)
_V32B = ir.VectorType(_I8, 32)
_V16S = ir.VectorType(_I16, 16)


class _Emit:
    """The few vector operations that the tiles are made of."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def at(self, base: Any, offset: Any) -> Any:
        """Pointer to ``offset`` bytes after address ``base``."""
        pointer = base if isinstance(base.type, ir.PointerType) else self.b.inttoptr(base, _PTR)
        offset = _I64(offset) if isinstance(offset, int) else offset
        return self.b.gep(pointer, [offset], source_etype=_I8)

    def load(self, pointer: Any, kind: ir.Type, align: int = 4) -> Any:
        return self.b.load(pointer, align=align, typ=kind)

    def splat(self, value: Any) -> Any:
        vector = ir.VectorType(value.type, 16)
        one = self.b.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, 16), [0] * 16)
        return self.b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        fn = cgutils.get_or_insert_function(self.b.module, ir.FunctionType(_V16F, (_V16F,) * 3), "llvm.fmuladd.v16f32")
        return self.b.call(fn, (a, b, c))

    def ahead(self, offset: Any, size: Any, skip: Any) -> Any:
        """Where the stream goes on a little after ``offset``: beyond ``size`` bytes, it skips the unused columns."""
        there = self.b.add(offset, _I64(_PREFETCH_BYTES))
        beyond = self.b.icmp_signed(">=", there, size)
        return self.b.add(there, self.b.select(beyond, skip, _I64(0)))

    def prefetch(self, pointer: Any) -> None:
        fnty = ir.FunctionType(ir.VoidType(), (_PTR, _I32, _I32, _I32))
        fn = cgutils.get_or_insert_function(self.b.module, fnty, "llvm.prefetch.p0")
        self.b.call(fn, (pointer, _I32(0), _I32(3), _I32(1)))

    def dot_pairs(self, a: Any, b: Any) -> Any:
        """a[2i] * b[2i] + a[2i+1] * b[2i+1] in 32 bits, for 32 int16 each (x86 ``vpmaddwd``)."""
        builder = self.b
        undef = ir.Constant(_V32S, ir.Undefined)

        def pick(v: Any, lanes: range) -> Any:
            return builder.shuffle_vector(v, undef, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

        if HAS_AVX512:
            fnty = ir.FunctionType(_V16I, (_V32S, _V32S))
            fn = cgutils.get_or_insert_function(builder.module, fnty, "llvm.x86.avx512.pmaddw.d.512")
            return builder.call(fn, (a, b))
        if "avx2" in CPU_FEATURES:
            half = ir.VectorType(_I32, 8)
            fnty = ir.FunctionType(half, (_V16S, _V16S))
            fn = cgutils.get_or_insert_function(builder.module, fnty, "llvm.x86.avx2.pmadd.wd")
            low, high = (builder.call(fn, (pick(a, r), pick(b, r))) for r in (range(16), range(16, 32)))
            return builder.shuffle_vector(low, high, ir.Constant(_V16I, list(range(16))))
        even, odd = (
            builder.mul(builder.sext(pick(a, r), _V16I), builder.sext(pick(b, r), _V16I))
            for r in (range(0, 32, 2), range(1, 32, 2))
        )
        return builder.add(even, odd)


_ZERO_F = ir.Constant(_V16F, None)
_ZERO_I = ir.Constant(_V16I, None)


def _sums(builder: Any, kind: ir.Type, n: int) -> list[Any]:
    """``n`` zeroed vector variables (LLVM keeps them in registers)."""
    variables = [cgutils.alloca_once(builder, kind) for _ in range(n)]
    for variable in variables:
        builder.store(ir.Constant(kind, None), variable)
    return variables


def _accumulate(builder: Any, variable: Any, kind: ir.Type, update: Callable[[Any], Any]) -> None:
    builder.store(update(builder.load(variable, typ=kind)), variable)


def _emit_float_tile(builder: Any, args: Any, tokens: int, half: bool) -> None:
    x, x_stride, w, w_stride, n, skip, y, y_stride = args
    e = _Emit(builder)
    size = 2 if half else 4
    chains = 4 if tokens == 1 else 1  # a lone token needs several sums under way to hide the latency of an fma
    sums = _sums(builder, _V16F, chains * tokens * 2)

    def column(k: Any, chain: int) -> None:
        row = e.at(w, builder.mul(k, w_stride))
        weights = []
        for v in range(2):
            if half:
                weights.append(floats_of_halves(builder, e.load(e.at(row, v * 32), _V16S, 2)))
            else:
                weights.append(e.load(e.at(row, v * 64), _V16F))
        if tokens == 1:
            ahead = e.at(w, e.ahead(builder.mul(k, w_stride), builder.mul(n, w_stride), skip))
            for line in range(0, 32 * size, 64):
                e.prefetch(e.at(ahead, line))
        offset = builder.shl(k, _I64(2))
        for t in range(tokens):
            pointer = e.at(e.at(x, builder.mul(x_stride, _I64(t))), offset)
            value = e.splat(e.load(pointer, _F32))
            for v in range(2):
                _accumulate(
                    builder, sums[(chain * tokens + t) * 2 + v], _V16F,
                    lambda s, value=value, weight=weights[v]: e.fma(value, weight, s),
                )  # fmt: skip

    whole = builder.and_(n, _I64(-chains))
    if chains > 1:
        with cgutils.for_range_slice(builder, _I64(0), whole, _I64(chains), _I64) as (k, _):
            for chain in range(chains):
                column(builder.add(k, _I64(chain)), chain)
    with cgutils.for_range_slice(builder, whole if chains > 1 else _I64(0), n, _I64(1), _I64) as (k, _):
        column(k, 0)
    for t in range(tokens):
        for v in range(2):
            total = builder.load(sums[t * 2 + v], typ=_V16F)
            for chain in range(1, chains):
                total = builder.fadd(total, builder.load(sums[(chain * tokens + t) * 2 + v], typ=_V16F))
            builder.store(total, e.at(e.at(y, builder.mul(y_stride, _I64(t))), v * 64), align=4)


def _emit_int8_tile(builder: Any, args: Any, tokens: int) -> None:
    x, x_stride, x_scale, w, w_scale, n_group, skip, y, y_stride = args
    e = _Emit(builder)
    pairs = GROUP // 2
    unroll = pairs if tokens == 1 else max(2, 16 // tokens)
    unroll = next(u for u in (16, 8, 4, 2) if u <= unroll)
    sums = _sums(builder, _V16I, tokens * 2)
    count = builder.mul(n_group, _I64(pairs))
    with cgutils.for_range_slice(builder, _I64(0), count, _I64(unroll), _I64) as (pair, _):
        row = e.at(w, builder.shl(pair, _I64(6)))
        offset = builder.shl(pair, _I64(2))
        ahead = e.at(w, e.ahead(builder.shl(pair, _I64(6)), builder.shl(count, _I64(6)), skip))
        for u in range(unroll):
            if tokens == 1:
                e.prefetch(e.at(ahead, u * 64))
            weights = [builder.sext(e.load(e.at(row, u * 64 + v * 32), _V32B, 32), _V32S) for v in range(2)]
            for t in range(tokens):
                pointer = e.at(e.at(e.at(x, builder.mul(x_stride, _I64(t))), offset), u * 4)
                value = builder.bitcast(e.splat(e.load(pointer, _I32)), _V32S)
                for v in range(2):
                    _accumulate(
                        builder, sums[t * 2 + v], _V16I,
                        lambda s, value=value, weight=weights[v]: builder.add(s, e.dot_pairs(weight, value)),
                    )  # fmt: skip
    row_scale = [e.load(e.at(w_scale, v * 64), _V16F) for v in range(2)]
    for t in range(tokens):
        scale = e.splat(e.load(e.at(x_scale, t * 4), _F32))
        for v in range(2):
            total = builder.sitofp(builder.load(sums[t * 2 + v], typ=_V16I), _V16F)
            out = builder.fmul(total, builder.fmul(row_scale[v], scale))
            builder.store(out, e.at(e.at(y, builder.mul(y_stride, _I64(t))), v * 64), align=4)


def _emit_int4_tile(builder: Any, args: Any, tokens: int) -> None:
    x, x_stride, x_scale, x_sum, sum_stride, w, w_scale, n_group, skip, y, y_stride = args
    e = _Emit(builder)
    totals = _sums(builder, _V16F, tokens * 2)
    mask = ir.Constant(_V32S, [15] * 32)
    shifts = [ir.Constant(_V32S, [4 * j] * 32) for j in range(4)]
    with cgutils.for_range_slice(builder, _I64(0), n_group, _I64(1), _I64) as (group, _):
        base = e.at(w, builder.mul(group, _I64(INT4_GROUP_BYTES)))
        sums = [_ZERO_I] * (2 * tokens)
        xs = [
            e.at(e.at(x, builder.mul(x_stride, _I64(t))), builder.shl(group, _I64(6))) for t in range(tokens)
        ]  # fmt: skip
        if tokens == 1:
            n_byte = builder.mul(n_group, _I64(INT4_GROUP_BYTES))
            ahead = e.at(w, e.ahead(builder.mul(group, _I64(INT4_GROUP_BYTES)), n_byte, skip))
            for line in range(0, INT4_GROUP_BYTES, 64):
                e.prefetch(e.at(ahead, line))
        for quarter in range(4):  # 8 columns
            words = [e.load(e.at(base, (quarter * 2 + v) * 64), _V32S, 64) for v in range(2)]
            for j in range(4):  # a pair of columns
                weights = []
                for word in words:
                    value = word if j == 0 else builder.lshr(word, shifts[j])
                    weights.append(value if j == 3 else builder.and_(value, mask))
                for t in range(tokens):
                    pointer = e.at(xs[t], (quarter * 4 + j) * 4)
                    value = builder.bitcast(e.splat(e.load(pointer, _I32)), _V32S)
                    for v in range(2):
                        sums[t * 2 + v] = builder.add(sums[t * 2 + v], e.dot_pairs(weights[v], value))
        x_sums = []
        for t in range(tokens):
            pointer = e.at(e.at(x_sum, builder.mul(sum_stride, _I64(t))), builder.shl(group, _I64(2)))
            x_sums.append(e.splat(e.load(pointer, _F32)))
        for v in range(2):
            scale, low = (
                floats_of_halves(builder, e.load(e.at(base, INT4_NIBBLE_BYTES + part * 64 + v * 32), _V16S, 2))
                for part in range(2)
            )
            for t in range(tokens):
                part = builder.sitofp(sums[t * 2 + v], _V16F)
                _accumulate(
                    builder, totals[t * 2 + v], _V16F,
                    lambda s, part=part, scale=scale, low=low, xs=x_sums[t]: e.fma(part, scale, e.fma(xs, low, s)),
                )  # fmt: skip
    row_scale = [e.load(e.at(w_scale, v * 64), _V16F) for v in range(2)]
    for t in range(tokens):
        scale = e.splat(e.load(e.at(x_scale, t * 4), _F32))
        for v in range(2):
            out = builder.fmul(builder.load(totals[t * 2 + v], typ=_V16F), builder.fmul(row_scale[v], scale))
            builder.store(out, e.at(e.at(y, builder.mul(y_stride, _I64(t))), v * 64), align=4)


def _kernel(n_argument: int, emit: Callable[[Any, Any], None]) -> Any:
    """An intrinsic of ``n_argument`` int64s that runs ``emit``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # one copy of each tile: inlined into every caller they took three times as long to compile
        builder.function.attributes.add("noinline")
        emit(builder, args)
        return context.get_dummy_value()

    signature = types.void(*[types.int64] * n_argument)
    if n_argument == 8:
        return intrinsic(lambda typingctx, a, b, c, d, e, f, g, h: (signature, codegen))
    if n_argument == 9:
        return intrinsic(lambda typingctx, a, b, c, d, e, f, g, h, i: (signature, codegen))
    return intrinsic(lambda typingctx, a, b, c, d, e, f, g, h, i, j, k: (signature, codegen))


def _float_tile(tokens: int, half: bool) -> Any:
    kernel = _kernel(8, lambda builder, args: _emit_float_tile(builder, args, tokens, half))

    @njit
    def tile(x, x_stride, w, w_stride, n, skip, y, y_stride):
        kernel(x, x_stride, w, w_stride, n, skip, y, y_stride)

    return tile


def _int8_tile(tokens: int) -> Any:
    kernel = _kernel(9, lambda builder, args: _emit_int8_tile(builder, args, tokens))

    @njit
    def tile(x, x_stride, x_scale, w, w_scale, n_group, skip, y, y_stride):
        kernel(x, x_stride, x_scale, w, w_scale, n_group, skip, y, y_stride)

    return tile


def _int4_tile(tokens: int) -> Any:
    kernel = _kernel(11, lambda builder, args: _emit_int4_tile(builder, args, tokens))

    @njit
    def tile(x, x_stride, x_scale, x_sum, sum_stride, w, w_scale, n_group, skip, y, y_stride):
        kernel(x, x_stride, x_scale, x_sum, sum_stride, w, w_scale, n_group, skip, y, y_stride)

    return tile


T0, T1, T2, T3 = TILE_TOKENS
_f0, _f1, _f2, _f3 = (_float_tile(t, False) for t in TILE_TOKENS)
_h0, _h1, _h2, _h3 = (_float_tile(t, True) for t in TILE_TOKENS)
_b0, _b1, _b2, _b3 = (_int8_tile(t) for t in TILE_TOKENS)
_q0, _q1, _q2, _q3 = (_int4_tile(t) for t in TILE_TOKENS)


@njit
def float_block(n_token, x, x_stride, w, w_stride, n, skip, y, y_stride):
    """y[t, :32] = sum over k < n of x[t, k] * w[k, :32], all float32. Strides in bytes.

    ``skip``: unused bytes between this block and the one read next, for prefetching (as in the other blocks).
    """
    t = 0
    while t < n_token:
        left = n_token - t
        if left >= T0:
            _f0(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T0
        elif left >= T1:
            _f1(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T1
        elif left >= T2:
            _f2(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T2
        else:
            _f3(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T3


@njit
def half_block(n_token, x, x_stride, w, w_stride, n, skip, y, y_stride):
    """`float_block` with ``w`` in half precision."""
    t = 0
    while t < n_token:
        left = n_token - t
        if left >= T0:
            _h0(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T0
        elif left >= T1:
            _h1(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T1
        elif left >= T2:
            _h2(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T2
        else:
            _h3(x + t * x_stride, x_stride, w, w_stride, n, skip, y + t * y_stride, y_stride)
            t += T3


@njit
def int8_block(n_token, x, x_stride, x_scale, w, w_scale, n_group, skip, y, y_stride):
    """One packed int8 block times int16 activations.

    y[t, r] = x_scale[t] * w_scale[r] * sum over 32 * n_group columns of x[t, k] * w[r, k]. Strides in bytes.
    """
    t = 0
    while t < n_token:
        left = n_token - t
        if left >= T0:
            _b0(x + t * x_stride, x_stride, x_scale + t * 4, w, w_scale, n_group, skip, y + t * y_stride, y_stride)
            t += T0
        elif left >= T1:
            _b1(x + t * x_stride, x_stride, x_scale + t * 4, w, w_scale, n_group, skip, y + t * y_stride, y_stride)
            t += T1
        elif left >= T2:
            _b2(x + t * x_stride, x_stride, x_scale + t * 4, w, w_scale, n_group, skip, y + t * y_stride, y_stride)
            t += T2
        else:
            _b3(x + t * x_stride, x_stride, x_scale + t * 4, w, w_scale, n_group, skip, y + t * y_stride, y_stride)
            t += T3


@njit
def int4_block(n_token, x, x_stride, x_scale, x_sum, sum_stride, w, w_scale, n_group, skip, y, y_stride):
    """One packed int4 block times int16 activations.

    ``x_sum[t, g]`` (float32) is the sum of the activations of group g. Scales and strides as in `int8_block`.
    """
    t = 0
    while t < n_token:
        left = n_token - t
        xt, st, ut, yt = x + t * x_stride, x_scale + t * 4, x_sum + t * sum_stride, y + t * y_stride
        if left >= T0:
            _q0(xt, x_stride, st, ut, sum_stride, w, w_scale, n_group, skip, yt, y_stride)
            t += T0
        elif left >= T1:
            _q1(xt, x_stride, st, ut, sum_stride, w, w_scale, n_group, skip, yt, y_stride)
            t += T1
        elif left >= T2:
            _q2(xt, x_stride, st, ut, sum_stride, w, w_scale, n_group, skip, yt, y_stride)
            t += T2
        else:
            _q3(xt, x_stride, st, ut, sum_stride, w, w_scale, n_group, skip, yt, y_stride)
            t += T3
