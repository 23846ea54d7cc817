"""A width of packed weights: how much of each layer is used, and output projections of its own."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import TensorSpec, pruned_tensors
from sentinel.models.width import Width
from sentinel.progress import track

from .packed_file import Collector, PackedTensors, read_packed, write_packed
from .precisions import Precision
from .weights import Arrays, Folded, Grams, check_stored, next_grams, pack_all, place_of, stored_bytes


@dataclass(frozen=True)
class PackedWidth:
    """The first head groups and neurons of each layer, and what belongs to this width alone.

    ``projections`` holds matrices and biases that were re-solved for it: ``layers.i.attn.out_proj`` and
    ``layers.i.mlp.down_proj``, each only as wide as the width. All others are prefixes of the whole ones.
    """

    width: Width
    projections: PackedTensors | None = None

    @classmethod
    def full(cls, spec: ModelSpec) -> PackedWidth:
        """All heads and neurons."""
        return cls(Width.full(spec))

    @classmethod
    def from_arrays(
        cls,
        spec: ModelSpec,
        width: Width,
        arrays: Arrays,
        precision: Precision,
        grams: Grams | None = None,
    ) -> PackedWidth:
        """A width whose own projections are ``arrays``: ``layers.i.attn.out_proj.weight`` [C, heads in use * D],
        ``layers.i.mlp.down_proj.weight`` [C, neurons in use], and their ``.bias``; scales are folded into them, and the
        gates of whole layers where there are any, ``layers.i.attn.gate``.

        ``grams`` as in `NativeWeights.from_arrays`, of the inputs at this width.
        """
        width.check(spec)
        known = list(_own_tensors(spec, width))
        gates = [tensor for tensor in pruned_tensors(spec) if tensor.name.endswith(".gate") and tensor.name in arrays]
        if other := set(arrays) - {tensor.name for tensor in (*known, *gates)}:
            raise InputError(
                f"a width can't replace {min(other)}, only weights and biases of output and down projections"
            )
        there = [tensor for tensor in known if tensor.name in arrays]
        if not there:
            return cls(width)
        packed = Collector(stored_bytes(_stored(there), precision))
        by_layer = itertools.groupby(track(known, f"Packing a width in {precision}", len(known)), place_of)
        for its in ([t for t in group if t.name in arrays] for _, group in by_layer):
            folded = Folded(arrays, spec, [*its, *(gate for gate in gates if its and gate.layer == its[0].layer)])
            pack_all(packed, _stored(its), folded, precision, next_grams(grams, precision))
        return cls(width, PackedTensors(*packed.joined()))

    def save(self, path: str | Path, precision: Precision) -> None:
        """Write the counts and projections to a file that `load` reads."""
        own = self.projections or PackedTensors(*Collector(0).joined())
        write_packed(path, own, {"width": json.dumps(dataclasses.asdict(self.width)), "precision": precision})

    @classmethod
    def load(cls, path: str | Path, spec: ModelSpec, precision: Precision) -> PackedWidth:
        """Read a width that `save` wrote; `InputError` for a damaged file and for a width of another model."""
        path = Path(path)
        own, metadata = read_packed(path)
        if not {"width", "level"} & set(metadata) or metadata.get("precision") != precision:
            raise InputError(f"{path} is no width of a model in {precision}")
        try:
            width = _width_of(metadata)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: its header is damaged ({error}); write the checkpoint again") from error
        try:
            width.check(spec)
        except InputError as error:
            raise InputError(f"{path} is a width of another model: {error}") from error
        there = [t for t in _own_tensors(spec, width) if {t.name, _packed_name(t)} & set(own.parts)]
        check_stored(own, path, _stored(there))
        for name, part in own.parts.items():
            if part.kind not in ("", precision):
                raise InputError(f"{path}: {name.removesuffix('.packed')} is not in {precision}")
        return cls(width, own)


def _width_of(metadata: Mapping[str, str]) -> Width:
    """The counts that a file's header names, or those of a header that earlier versions wrote."""
    if "width" in metadata:
        counts = json.loads(metadata["width"])
        return Width(counts["groups"], counts["neurons"])
    counts = json.loads(metadata["level"])
    return Width(counts["n_kv_head"], counts["n_neuron"])


def cut(tensor: TensorSpec, width: Width) -> TensorSpec:
    """``tensor`` as small as ``width`` uses it."""
    if tensor.unit is None:
        return tensor
    used = tensor.used(width)
    shape = (*tensor.shape[: tensor.axis], used * tensor.size, *tensor.shape[tensor.axis + 1 :])
    return dataclasses.replace(tensor, shape=shape, count=used)


def _own_tensors(spec: ModelSpec, width: Width) -> Iterator[TensorSpec]:
    """Tensors that a width may have of its own, in the order of use: matrices whose columns are units, and their biases."""
    for tensor in pruned_tensors(spec):
        if tensor.axis == 1:
            yield cut(tensor, width)
            yield TensorSpec(f"{tensor.name.removesuffix('weight')}bias", (tensor.shape[0],), layer=tensor.layer)


def _stored(tensors: list[TensorSpec]) -> list[tuple[str, TensorSpec]]:
    return [(tensor.name, tensor) for tensor in tensors if tensor.shape[-1]]


def _packed_name(tensor: TensorSpec) -> str:
    return f"{tensor.name.removesuffix('.weight')}.packed"
