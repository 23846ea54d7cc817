"""Sums of products of bytes, four to a lane of 32 bits, by what each CPU has for it.

Sixteen lanes of ``weights`` and ``values`` hold four bytes each; lane i of the sums grows by the four products.
Values are within -127..127. `INT8` multiplies weights of -128..127, `INT4` weights of 0..15. All are exact: every CPU has
the same sums. Arm's ``usdot`` is as fast as ``sdot``, and ``smmla`` would need another order of the weights.
"""

from __future__ import annotations

from typing import Any, Protocol

from llvmlite import ir
from numba.core import cgutils

from .cpu import CPU_FEATURES
from .emit import I8, I16, I32, V16I

V32S = ir.VectorType(I16, 32)
V64B = ir.VectorType(I8, 64)


class Dots(Protocol):
    """How products are summed."""

    @property
    def KIND(self) -> ir.Type:
        """The vector in which sums are kept."""
        ...

    @property
    def OFFSET(self) -> int:
        """What is added to signed weights before they are multiplied, so that sums must start at minus ``OFFSET`` times the
        sum of the values; 0 where both factors may be signed."""
        ...

    def add(self, builder: Any, total: Any, weights: Any, values: Any) -> Any:
        """The sums with 64 products more."""
        ...

    def whole(self, builder: Any, total: Any) -> Any:
        """The sums as 16 int32."""
        ...


def _parts(builder: Any, vector: Any, kind: Any) -> list[Any]:
    """A vector of 512 bits as several of ``kind``."""
    lanes = kind.count
    whole = ir.VectorType(kind.element, 512 // kind.element.width)
    vector = builder.bitcast(vector, whole)
    undefined = ir.Constant(whole, ir.Undefined)
    picks = [range(first, first + lanes) for first in range(0, whole.count, lanes)]
    if len(picks) == 1:
        return [vector]
    return [builder.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(I32, lanes), list(p))) for p in picks]


def _joined(builder: Any, parts: list[Any]) -> Any:
    """Inverse of `_parts`."""
    while len(parts) > 1:
        both = ir.VectorType(I32, 2 * parts[0].type.count)
        order = ir.Constant(both, list(range(both.count)))
        parts = [builder.shuffle_vector(a, b, order) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    kinds = [argument.type for argument in arguments]
    return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, kinds), name), arguments)


def _by_parts(builder: Any, name: str, kinds: tuple[ir.Type, ...], vectors: tuple[Any, ...], result: ir.Type) -> Any:
    """An intrinsic on each part of ``vectors``, whose parts are of ``kinds``."""
    parts = zip(*(_parts(builder, v, kind) for v, kind in zip(vectors, kinds, strict=True)), strict=True)
    return _joined(builder, [_call(builder, name, result, *arguments) for arguments in parts])


class Plain:
    """Shifts, products and sums that any CPU has. With ``offset`` 128 the weights count as unsigned."""

    KIND = V16I

    def __init__(self, offset: int) -> None:
        self.OFFSET = offset

    def add(self, builder: Any, total: Any, weights: Any, values: Any) -> Any:
        def byte(vector: Any, i: int, signed: bool) -> Any:
            up, down = (ir.Constant(V16I, [n] * 16) for n in (24 - 8 * i, 24))
            top = builder.shl(vector, up)
            return builder.ashr(top, down) if signed else builder.lshr(top, down)

        for i in range(4):
            product = builder.mul(byte(weights, i, self.OFFSET == 0), byte(values, i, True))
            total = builder.add(total, product)
        return total

    def whole(self, builder: Any, total: Any) -> Any:
        return total


class Vnni:
    """x86 ``vpdpbusd``, unsigned times signed, in registers of 512 bits (AVX-512 VNNI) or 256 (AVX-VNNI too)."""

    KIND = V16I
    OFFSET = 128

    def __init__(self, bits: int) -> None:
        self._name, self._part = f"llvm.x86.avx512.vpdpbusd.{bits}", ir.VectorType(I32, bits // 32)

    def add(self, builder: Any, total: Any, weights: Any, values: Any) -> Any:
        kind = self._part
        return _by_parts(builder, self._name, (kind, kind, kind), (total, weights, values), kind)

    def whole(self, builder: Any, total: Any) -> Any:
        return total


class Neon:
    """Arm ``sdot``, signed times signed."""

    KIND = V16I
    OFFSET = 0

    def add(self, builder: Any, total: Any, weights: Any, values: Any) -> Any:
        ints, bytes_ = ir.VectorType(I32, 4), ir.VectorType(I8, 16)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return _by_parts(builder, name, (ints, bytes_, bytes_), (total, weights, values), ints)

    def whole(self, builder: Any, total: Any) -> Any:
        return total


class _Pairs:
    """x86 without VNNI: ``vpmaddubsw``, unsigned times signed to int16, then ``vpmaddwd``."""

    OFFSET = 0

    def __init__(self, bits: int) -> None:
        width = "512" if bits == 512 else "avx2"
        self._bytes, self._shorts, self._ints = (ir.VectorType(kind, bits // kind.width) for kind in (I8, I16, I32))
        self._of_bytes = {"512": "llvm.x86.avx512.pmaddubs.w.512", "avx2": "llvm.x86.avx2.pmadd.ub.sw"}[width]
        self._of_shorts = {"512": "llvm.x86.avx512.pmaddw.d.512", "avx2": "llvm.x86.avx2.pmadd.wd"}[width]

    def _sum_pairs(self, builder: Any, weights: Any, values: Any) -> Any:
        """Sums of two products each, as 32 int16."""
        kinds = (self._bytes, self._bytes)
        found = [
            builder.bitcast(_call(builder, self._of_bytes, self._shorts, *both), self._ints)
            for both in zip(
                *(_parts(builder, v, k) for v, k in zip((weights, values), kinds, strict=True)), strict=True
            )
        ]
        return builder.bitcast(_joined(builder, found), V32S)

    def _sum_fours(self, builder: Any, pairs: Any) -> Any:
        """Sums of neighbouring int16, as 16 int32."""
        kinds, ones = (self._shorts, self._shorts), ir.Constant(V32S, [1] * 32)
        return _by_parts(builder, self._of_shorts, kinds, (pairs, ones), self._ints)


class SignedPairs(_Pairs):
    """Weights become positive and the values take their signs: two products are 2 * 127 * 128 = 32512 at the most."""

    KIND = V16I

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self._bits = bits

    def add(self, builder: Any, total: Any, weights: Any, values: Any) -> Any:
        weights, values = builder.bitcast(weights, V64B), builder.bitcast(values, V64B)
        none = ir.Constant(V64B, None)
        negative = builder.icmp_signed("<", weights, none)
        size = _call(builder, "llvm.abs.v64i8", V64B, weights, ir.IntType(1)(0))
        if self._bits == 256:
            kind = self._bytes
            signed = [
                builder.bitcast(_call(builder, "llvm.x86.avx2.psign.b", kind, x, w), self._ints)
                for x, w in zip(_parts(builder, values, kind), _parts(builder, weights, kind), strict=True)
            ]
            values = _joined(builder, signed)
        else:  # there is no such instruction for 512 bits
            values = builder.select(negative, builder.sub(none, values), values)
        return builder.add(total, self._sum_fours(builder, self._sum_pairs(builder, size, values)))

    def whole(self, builder: Any, total: Any) -> Any:
        return total


class SmallPairs(_Pairs):
    """For weights of 0..15: sums stay int16 for 8 additions, since 16 * 15 * 127 = 30480."""

    KIND = V32S

    def add(self, builder: Any, total: Any, weights: Any, values: Any) -> Any:
        return builder.add(total, self._sum_pairs(builder, weights, values))

    def whole(self, builder: Any, total: Any) -> Any:
        return self._sum_fours(builder, total)


def dots_of(features: frozenset[str]) -> tuple[Dots, Dots]:
    """What a CPU with these features has for int8 and for int4 weights."""
    if {"avx512f", "avx512bw", "avx512vnni"} <= features:
        return Vnni(512), Vnni(512)
    if "avxvnni" in features:
        return Vnni(256), Vnni(256)
    if {"avx512f", "avx512bw"} <= features:
        return SignedPairs(512), SmallPairs(512)
    if "avx2" in features:
        return SignedPairs(256), SmallPairs(256)
    if "dotprod" in features:
        return Neon(), Neon()
    return Plain(0), Plain(0)


INT8, INT4 = dots_of(CPU_FEATURES)
