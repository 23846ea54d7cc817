"""LLVM vector code: what the tiles of all precisions are made of.

Vectors are 16 lanes of 32 bits in the source; LLVM splits them for narrower machines. Only the size of tiles (how many
sums fit into registers) and the products of bytes (`dots`) depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .cpu import PREFETCH_BYTES

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
PTR = ir.PointerType()
F32 = ir.FloatType()
V16F = ir.VectorType(F32, 16)
V16I = ir.VectorType(I32, 16)
V16S = ir.VectorType(I16, 16)
V16B = ir.VectorType(I8, 16)


class Emit:
    """The few vector operations that the tiles are made of."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def at(self, base: Any, offset: Any) -> Any:
        """Pointer to ``offset`` bytes after address ``base``."""
        pointer = base if isinstance(base.type, ir.PointerType) else self.b.inttoptr(base, PTR)
        offset = I64(offset) if isinstance(offset, int) else offset
        return self.b.gep(pointer, [offset], source_etype=I8)

    def load(self, pointer: Any, kind: ir.Type, align: int = 4) -> Any:
        return self.b.load(pointer, align=align, typ=kind)

    def splat(self, value: Any) -> Any:
        vector = ir.VectorType(value.type, 16)
        one = self.b.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, 16), [0] * 16)
        return self.b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        fn = cgutils.get_or_insert_function(self.b.module, ir.FunctionType(V16F, (V16F,) * 3), "llvm.fmuladd.v16f32")
        return self.b.call(fn, (a, b, c))

    def rint(self, a: Any) -> Any:
        """To the nearest whole number, ties to even."""
        fn = cgutils.get_or_insert_function(self.b.module, ir.FunctionType(V16F, (V16F,)), "llvm.rint.v16f32")
        return self.b.call(fn, (a,))

    def reduce(self, what: str, a: Any) -> Any:
        """One int32 of 16: "add" or "smax"."""
        fnty = ir.FunctionType(I32, (V16I,))
        return self.b.call(
            cgutils.get_or_insert_function(self.b.module, fnty, f"llvm.vector.reduce.{what}.v16i32"), (a,)
        )

    def ahead(self, offset: Any, size: Any, skip: Any) -> Any:
        """Where the stream goes on a little after ``offset``: beyond ``size`` bytes, it skips the unused columns."""
        there = self.b.add(offset, I64(PREFETCH_BYTES))
        beyond = self.b.icmp_signed(">=", there, size)
        return self.b.add(there, self.b.select(beyond, skip, I64(0)))

    def prefetch(self, pointer: Any) -> None:
        fnty = ir.FunctionType(ir.VoidType(), (PTR, I32, I32, I32))
        fn = cgutils.get_or_insert_function(self.b.module, fnty, "llvm.prefetch.p0")
        self.b.call(fn, (pointer, I32(0), I32(3), I32(1)))


def sums(builder: Any, kind: ir.Type, n: int) -> list[Any]:
    """``n`` zeroed vector variables (LLVM keeps them in registers)."""
    variables = [cgutils.alloca_once(builder, kind) for _ in range(n)]
    for variable in variables:
        builder.store(ir.Constant(kind, None), variable)
    return variables


def accumulate(builder: Any, variable: Any, kind: ir.Type, update: Callable[[Any], Any]) -> None:
    """Replace a variable's value by what ``update`` makes of it."""
    builder.store(update(builder.load(variable, typ=kind)), variable)


def kernel(n_argument: int, emit: Callable[[Any, Any], None]) -> Any:
    """An intrinsic of ``n_argument`` int64s that runs ``emit``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # one copy of each tile: inlined into every caller they took three times as long to compile
        builder.function.attributes.add("noinline")
        emit(builder, args)
        return context.get_dummy_value()

    signature = types.void(*[types.int64] * n_argument)
    if n_argument == 8:
        return intrinsic(lambda typingctx, a, b, c, d, e, f, g, h: (signature, codegen))
    return intrinsic(lambda typingctx, a, b, c, d, e, f, g, h, i, j, k: (signature, codegen))


def store_scaled(builder: Any, w_scale: Any, y: Any, y_stride: Any, tile: tuple[int, int], totals: list[Any]) -> None:
    """Write a tile of so many tokens and vectors of 16 rows: y = total * scale of the row."""
    e = Emit(builder)
    tokens, halves = tile
    row_scale = [e.load(e.at(w_scale, v * 64), V16F) for v in range(halves)]
    for t in range(tokens):
        for v in range(halves):
            out = builder.fmul(builder.load(totals[t * halves + v], typ=V16F), row_scale[v])
            builder.store(out, e.at(e.at(y, builder.mul(y_stride, I64(t))), v * 64), align=4)
