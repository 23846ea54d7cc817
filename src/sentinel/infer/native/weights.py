"""A model's weights as the step reads them: packed, in one buffer, from arrays or a file."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.features import EVERY_GROUP, require_supported
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import TensorSpec, tensors_of, with_scales_folded
from sentinel.progress import track

from .blocks import padded
from .kernels.layout import ROWS
from .packed_file import Collector, PackedTensor, PackedTensors, read_packed, write_packed
from .precisions import PRECISIONS, Precision, packed_bytes

SUPPORTS = EVERY_GROUP
ALL = slice(None)
PIECE = 1 << 22  # weights that are packed at once
# Of one layer after the other, those of the baseline last: Gram matrices of what its matrices read, by their names.
Grams = Iterator[Mapping[str, NDArray]]


class Array(Protocol):
    """An array that can be read by its rows: one of NumPy, or one that is made when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray: ...


Arrays = Mapping[str, Array]
_UNREAD = ("baseline.final_norm.", "baseline.lm_head.")  # the baseline ends before its last layer
_PLACE = re.compile(r"((?:baseline\.)?layers|integration\.\w+)\.\d+\.")


class NativeWeights(PackedTensors):
    """Packed weights of a whole model.

    ``spec`` are the sizes, ``precision`` that of the layers' matrices. The matrix ``lm_head`` is the embedding too when
    the head is tied.
    """

    def __init__(
        self, spec: ModelSpec, precision: Precision, parts: dict[str, PackedTensor], data: NDArray[np.uint8]
    ) -> None:
        super().__init__(parts, data)
        self.spec = spec
        self.precision: Precision = precision

    # --- from arrays ------------------------------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls,
        spec: ModelSpec,
        arrays: Arrays,
        precision: Precision,
        *,
        head_precision: Precision | None = None,
        grams: Grams | None = None,
    ) -> NativeWeights:
        """Pack the float32 arrays of a model (canonical names, [outputs, inputs]), some rows of them at a time.

        ``head_precision`` is that of embeddings, LM head and fusions: that of the rest by default, but int8 where it is
        int4.
        ``grams`` gives, layer after layer and for every matrix of it (as ``layers.0.mlp.up_proj``), the sum [K, K] of
        x x^T over its inputs x on some text; with it int4 loses less, and others do not ask. An output projection's
        inputs are the heads' outputs before their gates.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not one of fp32, int8 and int4")
        require_supported(spec, SUPPORTS, "the native engine (levels 2 and 3)")
        places = _places(spec, precision, head_precision)
        packed = Collector(sum(stored_bytes(stored_tensors(spec, its), kind) for its, kind, _ in places))
        for its, kind, in_layer in track(places, f"Packing weights in {precision}", len(places)):
            known = next_grams(grams, precision) if in_layer else {}
            pack_all(packed, stored_tensors(spec, its), Folded(arrays, spec, its), kind, known)
        return cls(spec, precision, *packed.joined())

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads."""
        write_packed(path, self, {"precision": self.precision, "spec": self.spec.to_json()})

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> NativeWeights:
        """Read a file that `save` wrote; ``verify`` compares every tensor's checksum.

        Raises `InputError` that names the file for one that was cut short or altered, or whose tensors do not fit its
        model spec.
        """
        path = Path(path)
        tensors, metadata = read_packed(path, verify=verify)
        if metadata.get("precision") not in PRECISIONS or "spec" not in metadata:
            raise InputError(f"{path} holds no whole model")
        precision = cast(Precision, metadata["precision"])
        weights = cls(ModelSpec.from_json(metadata["spec"]), precision, tensors.parts, tensors.data)
        check_stored(weights, path, stored_tensors(weights.spec, tensors_of(weights.spec)))
        return weights


def _places(
    spec: ModelSpec, precision: Precision, head_precision: Precision | None
) -> list[tuple[list[TensorSpec], str, bool]]:
    """The tensors of each layer, of each fusion and of the ends, in which precision they are, and whether of a layer."""
    head = head_precision or PRECISIONS[precision].ENDS
    by_place = itertools.groupby(tensors_of(spec), place_of)
    return [(list(its), precision if "layers." in place else head, "layers." in place) for place, its in by_place]


def packed_size(spec: ModelSpec, precision: Precision) -> int:
    """Bytes of the packed weights of a whole model."""
    return sum(stored_bytes(stored_tensors(spec, its), kind) for its, kind, _ in _places(spec, precision, None))


def place_of(tensor: TensorSpec) -> str:
    """The layer (``layers.3``, ``baseline.layers.3``) or the fusion of a tensor; empty for one outside of them."""
    found = _PLACE.match(tensor.name)
    return "" if found is None else found[0].removesuffix(".")


def stored_tensors(spec: ModelSpec, tensors: Iterable[TensorSpec]) -> Iterator[tuple[str, TensorSpec]]:
    """Those of ``tensors`` that are stored, and by which names. Gates are folded; a tied embedding is the LM head."""
    for tensor in tensors:
        if math.prod(tensor.shape) and not tensor.name.endswith(".gate") and not tensor.name.startswith(_UNREAD):
            tied = spec.tied_head and tensor.name == "embed.weight"
            yield "lm_head.weight" if tied else tensor.name, tensor


def stored_bytes(tensors: Iterable[tuple[str, TensorSpec]], precision: str) -> int:
    """Bytes that `pack_all` makes of ``tensors``."""
    scale = 4 if PRECISIONS[precision].SCALED else 0
    return sum(
        packed_bytes(precision, *tensor.shape) + scale * padded(tensor.shape[0])
        if tensor.is_matrix
        else 4 * padded(math.prod(tensor.shape))
        for _, tensor in tensors
    )


def next_grams(grams: Grams | None, precision: Precision) -> Mapping[str, NDArray]:
    """The next layer's Gram matrices; none, and nothing is computed, where the precision makes no use of them."""
    return {} if grams is None or not PRECISIONS[precision].CALIBRATED else next(grams)


def pack_all(
    packed: Collector,
    tensors: Iterable[tuple[str, TensorSpec]],
    arrays: Folded,
    precision: str,
    gram_of: Mapping[str, NDArray],
) -> None:
    """Collect ``tensors``, matrices in that precision; ``gram_of`` has the Gram matrices [K, K] of their inputs."""
    storage = PRECISIONS[precision]
    for name, tensor in tensors:
        matrix = name.removesuffix(".weight")
        if not tensor.is_matrix:
            packed.add_vector(name, arrays.rows(tensor, ALL).reshape(-1))
            continue
        gram, (n_row, n_column) = gram_of.get(matrix), tensor.shape
        at_once = padded(PIECE // n_column, ROWS) or ROWS
        pieces = [ALL] if gram is not None else [slice(i, i + at_once) for i in range(0, n_row, at_once)]
        with packed.matrix(matrix, precision, (n_row, n_column)) as add:
            for rows in pieces:
                stored, scale = storage.quantise(arrays.rows(tensor, rows), gram)
                add(storage.pack(stored), scale)


class Folded:
    """Rows of ``tensors`` of one place as float32, with gates and scales folded in, of which only finite values are given.

    Gates that are not there count as 1. Raises `InputError` for a tensor that is missing or has another shape.
    """

    def __init__(self, arrays: Arrays, spec: ModelSpec, tensors: Iterable[TensorSpec]) -> None:
        self._arrays, self._spec = arrays, spec
        its = list(tensors)
        gates = [tensor for tensor in its if tensor.name.endswith(".gate") and tensor.name in arrays]
        for tensor in its:
            if tensor.name not in arrays and not tensor.name.endswith(".gate"):
                raise InputError(f"the weights lack the tensor {tensor.name}")
        self._gates = {gate.name: self._read(gate, ALL) for gate in gates}

    def rows(self, tensor: TensorSpec, rows: slice) -> NDArray[np.float32]:
        """Those rows of ``tensor``."""
        return with_scales_folded({tensor.name: self._read(tensor, rows), **self._gates}, self._spec)[tensor.name]

    def _read(self, tensor: TensorSpec, rows: slice) -> NDArray[np.float32]:
        found = self._arrays[tensor.name]
        if tuple(found.shape) != tensor.shape:
            raise InputError(
                f"tensor {tensor.name} has shape {tuple(found.shape)}, but the model spec says {tensor.shape}"
            )
        array = np.asarray(found[rows], np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"tensor {tensor.name} has values that are not finite (NaN or infinity)")
        return array


def check_stored(packed: PackedTensors, path: Path, tensors: Iterable[tuple[str, TensorSpec]]) -> None:
    """Refuse a file without ``tensors``, or with one of another size: kernels trust the sizes."""
    for name, tensor in tensors:
        if tensor.is_matrix:
            packed.require_matrix(path, name.removesuffix(".weight"), tensor.shape[0], tensor.shape[1])
        else:
            packed.require(path, name, 4 * padded(math.prod(tensor.shape)))
