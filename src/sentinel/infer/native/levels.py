"""A pruning level of packed weights: how much of each layer is used, and output projections of its own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec
from sentinel.progress import track

from .blocks import padded
from .packed_file import Collector, PackedTensors, read_packed, write_packed
from .precisions import Precision
from .weights import Grams, add_matrix, checked, layer_of, next_grams


@dataclass(frozen=True)
class Level:
    """How much of each layer is used: the first ``n_kv_head`` head groups and ``n_neuron`` neurons, per layer.

    ``projections`` holds what belongs to this level alone (compensated projections): ``layers.i.attn.out_proj`` and
    ``layers.i.mlp.down_proj``, each only as wide as the level. The others are prefixes of the whole ones.
    """

    n_kv_head: tuple[int, ...]
    n_neuron: tuple[int, ...]
    projections: PackedTensors | None = None

    @classmethod
    def full(cls, spec: ModelSpec) -> Level:
        """All heads and neurons."""
        return cls(tuple(y.n_kv_head for y in spec.layers), tuple(y.intermediate_size for y in spec.layers))

    @classmethod
    def from_arrays(
        cls,
        spec: ModelSpec,
        n_kv_head: Sequence[int],
        n_neuron: Sequence[int],
        arrays: Mapping[str, NDArray],
        precision: Precision,
        grams: Grams | None = None,
    ) -> Level:
        """A level whose own projections are ``arrays``: ``layers.i.attn.out_proj.weight`` [C, heads in use * D],
        ``layers.i.mlp.down_proj.weight`` [C, neurons in use], and their ``.bias``; gates are folded into them.

        ``grams`` as in `NativeWeights.from_arrays`, of the inputs at this level.
        """
        heads, neurons = tuple(int(k) for k in n_kv_head), tuple(int(k) for k in n_neuron)
        check_counts(spec, heads, neurons)
        known = _shapes(spec, heads, neurons)
        for name in arrays:
            if name not in known:
                raise InputError(f"a level can't replace {name}, only out_proj and down_proj weights and biases")
        tensors = Collector()
        wanted = track(list(known.items()), f"Packing a pruning level in {precision}", len(known)) if arrays else ()
        for _, its in itertools.groupby(wanted, lambda tensor: layer_of(tensor[0])):
            gram_of = next_grams(grams, precision)
            for name, shape in ((name, shape) for name, shape in its if name in arrays):
                array, matrix = checked(arrays, name, shape), name.removesuffix(".weight")
                if name.endswith(".bias"):
                    tensors.add_vector(name, array)
                elif array.size:
                    add_matrix(tensors, matrix, precision, array, gram_of.get(matrix))
        return cls(heads, neurons, PackedTensors(*tensors.joined()) if arrays else None)

    def save(self, path: str | Path, precision: Precision) -> None:
        """Write the level's counts and projections to a file that `load` reads."""
        counts = {"n_kv_head": self.n_kv_head, "n_neuron": self.n_neuron}
        own = self.projections or PackedTensors(*Collector().joined())
        write_packed(path, own, {"level": json.dumps(counts), "precision": precision})

    @classmethod
    def load(cls, path: str | Path, spec: ModelSpec, precision: Precision) -> Level:
        """Read a level that `save` wrote; `InputError` for a damaged file and for a level of another model."""
        path = Path(path)
        own, metadata = read_packed(path)
        if "level" not in metadata or metadata.get("precision") != precision:
            raise InputError(f"{path} is no pruning level of a model in {precision}")
        try:
            counts = json.loads(metadata["level"])
            heads, neurons = tuple(map(int, counts["n_kv_head"])), tuple(map(int, counts["n_neuron"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: its header is damaged ({error}); write the checkpoint again") from error
        try:
            check_counts(spec, heads, neurons)
        except InputError as error:
            raise InputError(f"{path} is a pruning level of another model: {error}") from error
        for name, shape in _shapes(spec, heads, neurons).items():
            matrix = name.removesuffix(".weight")
            if name in own.parts:
                own.require(path, name, 4 * padded(shape[0]))
            elif f"{matrix}.packed" in own.parts:
                own.require_matrix(path, matrix, shape[0], shape[1])
                if own.parts[f"{matrix}.packed"].kind != precision:
                    raise InputError(f"{path}: {matrix} is not in {precision}")
        return cls(heads, neurons, own)


def check_counts(spec: ModelSpec, n_kv_head: Sequence[int], n_neuron: Sequence[int]) -> None:
    """Raise `InputError` for counts that the layers of ``spec`` do not have."""
    layers = spec.layers
    if len(n_kv_head) != len(layers) or len(n_neuron) != len(layers):
        raise InputError(f"a level needs one count per layer, {len(layers)} of heads and of neurons")
    for i, (y, heads, neurons) in enumerate(zip(layers, n_kv_head, n_neuron, strict=True)):
        if not (0 <= heads <= y.n_kv_head and 0 <= neurons <= y.intermediate_size):
            raise InputError(
                f"layer {i} has {y.n_kv_head} head groups and {y.intermediate_size} neurons; "
                f"{heads} and {neurons} can't be used"
            )


def _shapes(spec: ModelSpec, n_kv_head: Sequence[int], n_neuron: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Tensors that a level may have of its own, in the order of use, and their shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for i, y in enumerate(spec.layers):
        columns = {"attn.out_proj": n_kv_head[i] * y.group_size * y.head_dim, "mlp.down_proj": n_neuron[i]}
        for part, n in columns.items():
            found[f"layers.{i}.{part}.weight"] = (spec.n_embd, n)
            found[f"layers.{i}.{part}.bias"] = (spec.n_embd,)
    return found
