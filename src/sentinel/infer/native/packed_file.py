"""Packed tensors in one buffer, and the file that holds them.

A file is a valid safetensors file whose data are that buffer, so loading is one read into huge pages, on every CPU: the
bytes are in the same order for all of them. Its metadata hold what the tensors are for, and a checksum of each.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError

from . import memory
from .blocks import padded
from .earlier_layout import repack
from .precisions import PRECISIONS, packed_bytes

FORMAT = "sentinel-native-2"
EARLIER_FORMAT = "sentinel-native-1"  # the same, with the bytes of matrices in another order
_ALIGN = 64
_DTYPES = {"U8": np.uint8, "F32": np.float32}


@dataclass(frozen=True)
class PackedTensor:
    """One tensor in the buffer: its bytes, and what they are (a vector, or a packed matrix with its sizes)."""

    start: int
    n_byte: int
    dtype: Literal["U8", "F32"]
    kind: str = ""
    n_row: int = 0
    n_column: int = 0


class PackedTensors:
    """Tensors by name: ``<matrix>.packed``, ``<matrix>.scale``, ``<matrix>.bias``, and vectors by their own names."""

    def __init__(self, parts: dict[str, PackedTensor], data: NDArray[np.uint8]) -> None:
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

    def require(self, source: Path, name: str, n_byte: int) -> None:
        """Raise `InputError` that names ``source`` unless there is such a tensor of that size: kernels trust sizes."""
        part = self.parts.get(name)
        if part is None or part.n_byte != n_byte or part.start % _ALIGN:
            raise InputError(f"{source}: tensor {name} is missing or has the wrong size")

    def require_matrix(self, source: Path, name: str, n_row: int, n_column: int) -> None:
        """`require` for the packed values and the scales of a matrix."""
        part = self.parts.get(f"{name}.packed")
        if part is None or part.kind not in PRECISIONS or (part.n_row, part.n_column) != (n_row, n_column):
            raise InputError(f"{source}: matrix {name} is missing or has the wrong size")
        self.require(source, f"{name}.packed", packed_bytes(part.kind, n_row, n_column))
        if PRECISIONS[part.kind].SCALED:
            self.require(source, f"{name}.scale", 4 * padded(n_row))


AddRows = Callable[[NDArray[np.uint8], "NDArray[np.float32] | None"], None]


class Collector:
    """Tensors that are being collected in one buffer of ``n_byte`` bytes, which are all that they take together."""

    def __init__(self, n_byte: int) -> None:
        self._data = memory.buffer(n_byte)[:n_byte]
        self._parts: dict[str, PackedTensor] = {}
        self._end = 0

    @contextmanager
    def matrix(self, name: str, kind: str, shape: tuple[int, int]) -> Iterator[AddRows]:
        """Yield what adds the packed bytes of some blocks of rows of a matrix [N, K] and, if it is quantised, the scales of
        its rows, from the first block to the last."""
        start, scales = self._end, list[NDArray[np.float32]]()

        def add(packed: NDArray[np.uint8], scale: NDArray[np.float32] | None) -> None:
            self._data[self._end : self._end + packed.nbytes] = packed
            self._end += packed.nbytes
            if scale is not None:
                scales.append(scale)

        yield add
        self._parts[f"{name}.packed"] = PackedTensor(start, self._end - start, "U8", kind, *shape)
        if scales:
            self.add_vector(f"{name}.scale", np.concatenate(scales))

    def add_vector(self, name: str, vector: NDArray[np.float32]) -> None:
        """A vector; zeros follow up to a multiple of 32, since kernels read whole blocks of rows."""
        full = np.zeros(padded(vector.size), np.float32)
        full[: vector.size] = vector
        assert self._end % _ALIGN == 0
        self._parts[name] = PackedTensor(self._end, full.nbytes, "F32")
        self._data[self._end : self._end + full.nbytes] = full.view(np.uint8)
        self._end += full.nbytes

    def joined(self) -> tuple[dict[str, PackedTensor], NDArray[np.uint8]]:
        """The parts, and the buffer with all of them."""
        assert self._end == len(self._data)
        return self._parts, self._data


def write_packed(path: str | Path, tensors: PackedTensors, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that `read_packed` reads."""
    described = {
        name: {"dtype": p.dtype, "shape": [p.n_byte // (4 if p.dtype == "F32" else 1)],
               "data_offsets": [p.start, p.start + p.n_byte]}
        for name, p in tensors.parts.items()
    }  # fmt: skip
    matrices = {n: [p.kind, p.n_row, p.n_column] for n, p in tensors.parts.items() if p.kind}
    sums = {n: zlib.crc32(tensors.array(n).data) for n in tensors.parts}
    own = {"format": FORMAT, "matrices": json.dumps(matrices), "crc32": json.dumps(sums)}
    header = json.dumps({"__metadata__": {**metadata, **own}, **described}).encode()
    header += b" " * (-(len(header) + 8) % _ALIGN)
    with Path(path).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(tensors.data.data)


def read_packed(path: Path, *, verify: bool = True) -> tuple[PackedTensors, dict[str, str]]:
    """Tensors and metadata of a file that `write_packed` wrote; ``verify`` compares every tensor's checksum.

    Raises `InputError` that names the file when it is missing, cut short, altered or of another format.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            n_header = int.from_bytes(file.read(8), "little")
            if n_header > size - 8:
                raise InputError(f"{path} is not a safetensors file, or was cut short")
            parts, sums, metadata = _read_header(file.read(n_header), path)
            n_byte = max((p.start + p.n_byte for p in parts.values()), default=0)
            if size != 8 + n_header + n_byte:
                raise InputError(f"{path} was cut short or has bytes too many: {size}, not {8 + n_header + n_byte}")
            data = memory.buffer(n_byte)[:n_byte]
            file.readinto(data.data)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error})") from error
    tensors = PackedTensors(parts, data)
    for name in parts if verify else ():
        if zlib.crc32(tensors.array(name).data) != sums.get(name):
            raise InputError(f"{path}: tensor {name} is damaged (its checksum differs); write the checkpoint again")
    if metadata["format"] == EARLIER_FORMAT:
        for name, part in parts.items():
            if part.kind in PRECISIONS and part.n_byte == packed_bytes(part.kind, part.n_row, part.n_column):
                repack(tensors.array(name), part.kind)
    return tensors, metadata


def _read_header(header: bytes, path: Path) -> tuple[dict[str, PackedTensor], dict[str, int], dict[str, str]]:
    try:
        described = json.loads(header)
        metadata = described.pop("__metadata__")
        found = metadata["format"]
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a packed Sentinel model") from error
    if found not in (FORMAT, EARLIER_FORMAT):
        raise InputError(f"{path} has format {found!r}; this version of sentinel reads {FORMAT!r}")
    try:
        matrices, sums = json.loads(metadata["matrices"]), json.loads(metadata["crc32"])
        parts = {}
        for name, entry in described.items():
            start, end = (int(offset) for offset in entry["data_offsets"])
            kind, n_row, n_column = matrices.get(name, ("", 0, 0))
            if not 0 <= start <= end or entry["dtype"] not in _DTYPES:
                raise ValueError(f"tensor {name}")
            parts[name] = PackedTensor(start, end - start, entry["dtype"], kind, int(n_row), int(n_column))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its header is damaged ({error}); write the checkpoint again") from error
    return parts, sums, metadata
