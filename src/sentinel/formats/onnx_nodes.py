# pyright: standard
"""Nodes and constants of an ONNX graph, matrices in several forms among them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

MICROSOFT = "com.microsoft"
BLOCK = 32  # weights per scale in MatMulNBits
Matrices = Literal["fp32", "dynamic int8", "int8 blocks", "int4 blocks"]


class Nodes:
    """Nodes and constants, added in order of computation; every method returns the name of what it made.

    A ``compact`` graph has the token embedding in blocks of int8 where the matrices are in blocks, and a tied LM head once.
    """

    def __init__(self, matrices: Matrices, *, compact: bool = False) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.weight_bytes = 0
        self._matrices: Matrices = matrices
        self._shared: tuple[str, ...] = ()
        self._compact = compact
        self._packed_tables = compact and matrices in ("int8 blocks", "int4 blocks")

    def constant(self, array: NDArray[Any], *, streamed: bool = True) -> str:
        """A weight; ``streamed`` when every decoded token reads all of it."""
        name = f"w{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        self.weight_bytes += array.nbytes * streamed
        return name

    def integer(self, value: int | list[int]) -> str:
        """Whole numbers that operators take as an input."""
        return self.constant(np.array(value, np.int64), streamed=False)

    def table(self, array: NDArray[Any]) -> str:
        """A weight of which a token reads one row."""
        self.weight_bytes += array[:1].nbytes
        return self.constant(array, streamed=False)

    def look_up(self, weight: NDArray[np.float32], rows: str, *, shared: bool) -> str:
        """The ``rows`` [B, T] of an embedding [V, C], which may be ``shared`` with an LM head (`shared_head`)."""
        if not self._packed_tables or weight.shape[1] % BLOCK:
            table = self.table(weight)
            self._shared = (table,) if shared and self._compact and self._matrices == "fp32" else ()
            return self.node("Gather", table, rows)
        codes, scales = (self.table(array) for array in in_blocks(weight, 8))
        self._shared = (codes, scales) if shared else ()
        flat = self.node("Reshape", codes, self.integer([*weight.shape]))
        each = self.node("Reshape", scales, self.integer([len(weight), -1]))
        options: dict[str, Any] = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        return self.node("GatherBlockQuantized", flat, rows, each, domain=MICROSOFT, **options)

    def shared_head(self, x: str, weight: NDArray[np.float32]) -> str | None:
        """x W^T for the embedding that was looked up and is stored once; None where the two need forms of their own.

        onnxruntime transposes and reshapes a constant once, when it loads the graph.
        """
        if not self._shared:
            return None
        self.weight_bytes += weight.nbytes if len(self._shared) == 1 else weight.size + weight.size // BLOCK * 4
        if len(self._shared) == 1:
            return self.node("MatMul", x, self.node("Transpose", *self._shared, perm=[1, 0]))
        codes, scales = self._shared
        return self._in_blocks(x, codes, scales, weight.shape, 8)

    def _in_blocks(self, x: str, codes: str, scales: str, shape: tuple[int, ...], bits: int, bias: str = "") -> str:
        rows, columns = shape
        inputs = (x, codes, scales, *(("", "", bias) if bias else ()))
        sizes: dict[str, Any] = {"K": columns, "N": rows, "bits": bits, "block_size": BLOCK}
        # Level 4: products in int8, the fastest that there is.
        return self.node("MatMulNBits", *inputs, domain=MICROSOFT, accuracy_level=4, **sizes)

    def node(self, op: str, *inputs: str, outputs: tuple[str, ...] = (), domain: str = "", **attributes: Any) -> str:
        """One operator with one output, or with those that are named."""
        made = outputs or (f"x{len(self.nodes)}",)
        self.nodes.append(helper.make_node(op, list(inputs), list(made), domain=domain, **attributes))
        return made[0]

    def matrix(self, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> str:
        """x W^T + b for ``weight`` [out, in]."""
        added = () if bias is None else (self.constant(bias),)
        if self._matrices == "fp32":
            y = self.node("MatMul", x, self.constant(np.transpose(weight)))
            return self.node("Add", y, *added) if added else y
        if self._matrices == "dynamic int8":
            scales = np.abs(weight).max(axis=1) / 127
            scales[scales == 0] = 1
            rounded = np.rint(weight / scales[:, None]).astype(np.int8)
            arrays = (
                self.constant(np.transpose(rounded)),
                self.constant(scales),
                self.constant(np.zeros(len(weight), np.int8)),
            )
            return self.node("DynamicQuantizeMatMul", x, *arrays, *added, domain=MICROSOFT)
        bits = 8 if self._matrices == "int8 blocks" else 4
        packed, scales = in_blocks(weight, bits)
        codes, steps = self.constant(packed), self.constant(scales)
        return self._in_blocks(x, codes, steps, weight.shape, bits, *added)


def in_blocks(weight: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes [out, blocks, BLOCK * bits / 8] around the middle of their range, and scales [out * blocks]."""
    middle = 1 << (bits - 1)
    padded = np.reshape(np.pad(weight, ((0, 0), (0, -weight.shape[1] % BLOCK))), (len(weight), -1, BLOCK))
    furthest: NDArray[np.float32] = np.take_along_axis(padded, np.abs(padded).argmax(-1)[..., None], -1)
    scales = furthest / -middle  # the value furthest from 0 becomes the lowest code, of which there is one more
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    rounded = np.rint(padded * inverse) + middle
    codes = np.minimum(np.maximum(rounded, 0), 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = np.bitwise_or(codes[..., ::2], np.left_shift(codes[..., 1::2], np.uint8(4)))
    return codes, np.ravel(scales).astype(np.float32)
