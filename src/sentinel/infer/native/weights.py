"""A model's weights as the step reads them: packed, in one buffer, in the order of use; from arrays or a file.

A file is a valid safetensors file whose data are that buffer, so loading is one read into huge pages. Its metadata hold
the model spec, the precision and a checksum per tensor.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec

from . import memory, packing

Precision = Literal["fp32", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")
FORMAT = "sentinel-native-1"
_ALIGN = 64
_DTYPES = {"U8": np.uint8, "F32": np.float32}


@dataclass(frozen=True)
class Part:
    """One tensor in the buffer: its bytes, and what they are (a vector, or a packed matrix with its sizes)."""

    start: int
    n_byte: int
    dtype: Literal["U8", "F32"]
    kind: str = ""
    n_row: int = 0
    n_column: int = 0


class NativeWeights:
    """Packed weights of a whole model.

    ``spec`` are the sizes, ``precision`` that of the layers' matrices, ``parts`` the tensors by name:
    ``<matrix>.packed``, ``<matrix>.scale``, ``<matrix>.bias``, and the norms' and positions' own names. The matrix
    ``lm_head`` is the embedding too when the head is tied.
    """

    def __init__(self, spec: ModelSpec, precision: Precision, parts: dict[str, Part], data: NDArray[np.uint8]) -> None:
        self.spec = spec
        self.precision = precision
        self.parts = parts
        self.data = data

    @property
    def n_byte(self) -> int:
        """Bytes of all tensors together."""
        return self.data.nbytes

    def address(self, name: str) -> int:
        """Where a tensor starts in memory; 0 if there is no such tensor."""
        part = self.parts.get(name)
        return 0 if part is None else self.data.ctypes.data + part.start

    def array(self, name: str) -> NDArray:
        """One tensor as it is stored (no copy)."""
        part = self.parts[name]
        return self.data[part.start : part.start + part.n_byte].view(_DTYPES[part.dtype])

    # --- from arrays ------------------------------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls,
        spec: ModelSpec,
        arrays: Mapping[str, NDArray],
        precision: Precision,
        *,
        head_precision: Precision | None = None,
        grams: Mapping[str, NDArray] | None = None,
    ) -> NativeWeights:
        """Pack the float32 arrays of a model (canonical names, [outputs, inputs]).

        ``head_precision`` is that of embedding and LM head: that of the rest by default, but int8 where it is int4.
        ``grams`` has, per matrix name (as ``layers.0.mlp.up_proj``), the sum [K, K] of x x^T over its inputs x on some
        text; with it int4 loses less. An output projection's inputs are the heads' outputs before their gates.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not one of fp32, int8 and int4")
        head = head_precision or ("int8" if precision == "int4" else precision)
        tensors = _Tensors(arrays, grams or {}, spec.tied_head)
        for name, n_row, n_column, bias in matrices_of(spec):
            kind = head if name in ("embed", "lm_head") else precision
            tensors.add_matrix(name, kind, n_row, n_column, bias, _gates(spec, arrays, name))
        for name, shape in vectors_of(spec):
            tensors.add_vector(name, shape)
        parts, data = tensors.joined()
        return cls(spec, precision, parts, data)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `load` reads."""
        tensors = {
            name: {"dtype": p.dtype, "shape": [p.n_byte // (4 if p.dtype == "F32" else 1)],
                   "data_offsets": [p.start, p.start + p.n_byte]}
            for name, p in self.parts.items()
        }  # fmt: skip
        matrices = {n: [p.kind, p.n_row, p.n_column] for n, p in self.parts.items() if p.kind}
        sums = {n: zlib.crc32(self.array(n).data) for n in self.parts}
        metadata = {
            "format": FORMAT,
            "precision": self.precision,
            "spec": self.spec.to_json(),
            "matrices": json.dumps(matrices),
            "crc32": json.dumps(sums),
        }
        header = json.dumps({"__metadata__": metadata, **tensors}).encode()
        header += b" " * (-(len(header) + 8) % _ALIGN)
        with Path(path).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(self.data.data)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> NativeWeights:
        """Read a file that `save` wrote; ``verify`` compares every tensor's checksum."""
        path = Path(path)
        with path.open("rb") as file:
            size = path.stat().st_size
            n_header = int.from_bytes(file.read(8), "little")
            if n_header > size - 8:
                raise InputError(f"{path} is not a safetensors file, or was cut short")
            try:
                header = json.loads(file.read(n_header))
                metadata = header.pop("__metadata__")
                found = metadata["format"]
            except (ValueError, KeyError, AttributeError) as error:
                raise InputError(f"{path} is not a packed Sentinel model") from error
            if found != FORMAT:
                raise InputError(f"{path} has format {found!r}; this version of sentinel reads {FORMAT!r}")
            matrices, sums = json.loads(metadata["matrices"]), json.loads(metadata["crc32"])
            parts = {}
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                kind, n_row, n_column = matrices.get(name, ("", 0, 0))
                parts[name] = Part(start, end - start, entry["dtype"], kind, n_row, n_column)
            n_byte = max(p.start + p.n_byte for p in parts.values())
            if size != 8 + n_header + n_byte:
                raise InputError(f"{path} was cut short or has bytes too many: {size}, not {8 + n_header + n_byte}")
            data = memory.buffer(n_byte)
            file.readinto(data.data)
        weights = cls(ModelSpec.from_json(metadata["spec"]), metadata["precision"], parts, data)
        _check_parts(weights, path)
        if verify:
            for name in parts:
                if zlib.crc32(weights.array(name).data) != sums.get(name):
                    raise InputError(f"{path}: tensor {name} is damaged (its checksum differs)")
        return weights


def matrices_of(spec: ModelSpec) -> list[tuple[str, int, int, bool]]:
    """Name, outputs, inputs and whether there is a bias, of every matrix in the order of use; empty ones included."""
    c = spec.n_embd
    found = [] if spec.tied_head else [("embed", spec.vocab_size, c, False)]
    for i, layer in enumerate(spec.layers):
        f = layer.intermediate_size
        found.append((f"layers.{i}.attn.qkv_proj", layer.qkv_rows, c, spec.qkv_bias))
        found.append((f"layers.{i}.attn.out_proj", c, layer.n_head * layer.head_dim, spec.out_bias))
        if spec.gated_mlp:
            found.append((f"layers.{i}.mlp.gate_proj", f, c, spec.up_bias))
        found.append((f"layers.{i}.mlp.up_proj", f, c, spec.up_bias))
        found.append((f"layers.{i}.mlp.down_proj", c, f, spec.down_bias))
    found.append(("lm_head", spec.vocab_size, c, False))
    return found


def vectors_of(spec: ModelSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of everything that is not a matrix."""
    names = [f"layers.{i}.{part}" for i in range(spec.n_layer) for part in ("attn_norm", "mlp_norm")] + ["final_norm"]
    found: list[tuple[str, tuple[int, ...]]] = []
    for name in names:
        found.append((f"{name}.weight", (spec.n_embd,)))
        if spec.norm == "layernorm":
            found.append((f"{name}.bias", (spec.n_embd,)))
    if spec.positions == "learned":
        found.append(("positions.weight", (spec.max_seq_len, spec.n_embd)))
    return found


def pack_matrix(
    name: str, kind: str, weight: NDArray[np.float32], gram: NDArray | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Packed bytes of float32 [N, K] and, if quantised, the scales of its rows."""
    if kind == "fp32":
        return packing.pack_fp32(weight), None
    from . import quantise  # not needed to run a quantised file, and slow to import

    if kind == "int8":
        values, scale = quantise.int8(weight)
        return packing.pack_int8(values), scale
    values, step, low, scale = quantise.int4(weight, gram)
    return packing.pack_int4(values, step, low), scale


def checked(arrays: Mapping[str, NDArray], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The array ``name`` as float32, if it is there, has that shape and only finite values."""
    if name not in arrays:
        raise InputError(f"the weights lack the tensor {name}")
    array = np.asarray(arrays[name], np.float32)
    if array.shape != shape:
        raise InputError(f"tensor {name} has shape {array.shape}, but the model spec says {shape}")
    if not np.isfinite(array).all():
        raise InputError(f"tensor {name} has values that are not finite (NaN or infinity)")
    return array


def _gates(spec: ModelSpec, arrays: Mapping[str, NDArray], name: str) -> NDArray[np.float32] | None:
    """Factors of the columns of ``name``: an output projection's head gates, if the model has any."""
    if not name.endswith(".out_proj"):
        return None
    gate = name.removesuffix("out_proj") + "gate"
    layer = spec.layers[int(name.split(".")[1])]
    if gate not in arrays or layer.n_head == 0:
        return None
    return np.repeat(checked(arrays, gate, (layer.n_head,)), layer.head_dim)


class _Tensors:
    """Tensors that are being collected for one buffer."""

    def __init__(self, arrays: Mapping[str, NDArray], grams: Mapping[str, NDArray], tied_head: bool) -> None:
        self._arrays = arrays
        self._tied_head = tied_head
        self._grams = grams
        self._found: dict[str, tuple[Part, NDArray[np.uint8]]] = {}
        self._end = 0

    def add_matrix(
        self, name: str, kind: str, n_row: int, n_column: int, bias: bool, columns: NDArray[np.float32] | None
    ) -> None:
        source = "embed" if name == "lm_head" and self._tied_head else name
        if n_row and n_column:
            weight = checked(self._arrays, f"{source}.weight", (n_row, n_column))
            if columns is not None:
                weight = weight * columns
            packed, scale = pack_matrix(name, kind, weight, self._grams.get(name))
            self._add(f"{name}.packed", packed, "U8", kind, n_row, n_column)
            if scale is not None:
                self._add_padded(f"{name}.scale", scale)
        if bias and n_row:
            self._add_padded(f"{name}.bias", checked(self._arrays, f"{name}.bias", (n_row,)))

    def add_vector(self, name: str, shape: tuple[int, ...]) -> None:
        self._add_padded(name, checked(self._arrays, name, shape).reshape(-1))

    def _add_padded(self, name: str, vector: NDArray[np.float32]) -> None:
        """Zeros up to a multiple of 32: kernels read whole blocks of rows."""
        full = np.zeros(packing.padded(vector.size), np.float32)
        full[: vector.size] = vector
        self._add(name, full.view(np.uint8), "F32")

    def _add(self, name: str, data: NDArray[np.uint8], dtype: Literal["U8", "F32"], *matrix: str | int) -> None:
        self._found[name] = (Part(self._end, data.nbytes, dtype, *matrix), data)  # type: ignore[arg-type]
        self._end += data.nbytes

    def joined(self) -> tuple[dict[str, Part], NDArray[np.uint8]]:
        data = memory.buffer(self._end)[: self._end]
        for part, tensor in self._found.values():
            assert part.start % _ALIGN == 0
            data[part.start : part.start + part.n_byte] = tensor
        return {name: part for name, (part, _) in self._found.items()}, data


def _check_parts(weights: NativeWeights, path: Path) -> None:
    """Refuse a file whose tensors do not fit its own model spec: kernels trust the sizes."""

    def check(name: str, n_byte: int) -> None:
        part = weights.parts.get(name)
        if part is None or part.n_byte != n_byte or part.start % _ALIGN:
            raise InputError(f"{path}: tensor {name} is missing or has the wrong size")

    for name, n_row, n_column, bias in matrices_of(weights.spec):
        if n_row and n_column:
            part = weights.parts.get(f"{name}.packed")
            if part is None or part.kind not in PRECISIONS or (part.n_row, part.n_column) != (n_row, n_column):
                raise InputError(f"{path}: matrix {name} is missing or has the wrong size")
            check(f"{name}.packed", packing.packed_bytes(part.kind, n_row, n_column))
            if part.kind != "fp32":
                check(f"{name}.scale", 4 * packing.padded(n_row))
        if bias and n_row:
            check(f"{name}.bias", 4 * packing.padded(n_row))
    for name, shape in vectors_of(weights.spec):
        check(name, 4 * packing.padded(int(np.prod(shape))))
