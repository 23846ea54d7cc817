"""Every tensor of a decoder: its name, its shape, and which axis counts head groups or neurons.

What follows from that is a loop over the table: taking units out, using a prefix of them, bringing them back. It works on
torch tensors and NumPy arrays alike, and imports neither. ::

    layers.i.attn.qkv_proj   weight [groups * (q + k + v), C]   bias [groups * (q + k + v)]
    layers.i.attn.gate       [heads], which are groups * heads of a group
    layers.i.attn.out_proj   weight [C, groups * heads of a group * D]     bias [C]
    layers.i.mlp.gate_proj, up_proj   weight [neurons, C]       bias [neurons]
    layers.i.mlp.down_proj   weight [C, neurons]                bias [C]

Shape letters: C width, D head dim. A unit is one head group or one neuron; its rows or columns are neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sentinel.models.spec import LayerSpec, ModelSpec

Unit = Literal["groups", "neurons"]
Array = Any  # a torch tensor or a NumPy array: what is done here, both can do


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the decoder's state.

    Where ``unit`` says what ``axis`` counts, there are ``count`` units of ``size`` neighbouring rows or columns each, in
    layer ``layer``.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    unit: Unit | None = None
    axis: int = 0
    count: int = 0
    size: int = 0


@dataclass(frozen=True)
class Kept:
    """Numbers of the head ``groups`` and ``neurons`` of each layer that stay, in the order in which they are stored."""

    groups: Sequence[Sequence[int]]
    neurons: Sequence[Sequence[int]]

    def of(self, tensor: TensorSpec) -> list[int]:
        """The units of that tensor that stay."""
        assert tensor.layer is not None and tensor.unit is not None
        return list((self.groups if tensor.unit == "groups" else self.neurons)[tensor.layer])


def tensors_of(spec: ModelSpec, prefix: str = "") -> Iterator[TensorSpec]:
    """All tensors of a decoder of that specification, as its ``state_dict`` names them, the frozen baseline's too."""
    width = spec.n_embd
    yield TensorSpec(f"{prefix}embed.weight", (spec.vocab_size, width))
    if spec.positions == "learned":
        yield TensorSpec(f"{prefix}positions.weight", (spec.max_seq_len, width))
    for index, layer in enumerate(spec.layers):
        yield from _layer_tensors(spec, layer, index, f"{prefix}layers.{index}")
    yield from _norm_tensors(spec, f"{prefix}final_norm")
    if not spec.tied_head:
        yield TensorSpec(f"{prefix}lm_head.weight", (spec.vocab_size, width))
    if spec.integration is not None:
        yield from _fusion_tensors(spec, f"{prefix}integration")
        if spec.integration.baseline is not None:
            yield from tensors_of(spec.integration.baseline, f"{prefix}baseline.")


def _norm_tensors(spec: ModelSpec, name: str) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (spec.n_embd,))
    if spec.norm == "layernorm":
        yield TensorSpec(f"{name}.bias", (spec.n_embd,))


def _layer_tensors(spec: ModelSpec, layer: LayerSpec, index: int, name: str) -> Iterator[TensorSpec]:
    width, per_group, dim = spec.n_embd, layer.group_size, layer.head_dim
    groups = {"layer": index, "unit": "groups", "count": layer.n_kv_head}
    neurons = {"layer": index, "unit": "neurons", "count": layer.intermediate_size, "size": 1}
    rows = {**groups, "size": (per_group + 2) * dim}
    yield from _norm_tensors(spec, f"{name}.attn_norm")
    yield TensorSpec(f"{name}.attn.qkv_proj.weight", (layer.qkv_rows, width), **rows)
    if spec.qkv_bias:
        yield TensorSpec(f"{name}.attn.qkv_proj.bias", (layer.qkv_rows,), **rows)
    yield TensorSpec(f"{name}.attn.gate", (layer.n_head,), **groups, size=per_group)
    columns = {**groups, "axis": 1, "size": per_group * dim}
    yield TensorSpec(f"{name}.attn.out_proj.weight", (width, layer.n_head * dim), **columns)
    if spec.out_bias:
        yield TensorSpec(f"{name}.attn.out_proj.bias", (width,))
    yield from _norm_tensors(spec, f"{name}.mlp_norm")
    for projection in ("gate_proj", "up_proj") if spec.gated_mlp else ("up_proj",):
        yield TensorSpec(f"{name}.mlp.{projection}.weight", (layer.intermediate_size, width), **neurons)
        if spec.up_bias:
            yield TensorSpec(f"{name}.mlp.{projection}.bias", (layer.intermediate_size,), **neurons)
    yield TensorSpec(f"{name}.mlp.down_proj.weight", (width, layer.intermediate_size), **neurons, axis=1)
    if spec.down_bias:
        yield TensorSpec(f"{name}.mlp.down_proj.bias", (width,))


def _fusion_tensors(spec: ModelSpec, name: str) -> Iterator[TensorSpec]:
    assert spec.integration is not None
    width, rank = spec.n_embd, spec.integration.rank
    kinds = {"skips": spec.integration.skips, "adapters": spec.integration.baseline is not None}
    for kind in (kind for kind, wanted in kinds.items() if wanted):
        for place in (f"{name}.{kind}.{i}" for i in range(spec.n_layer // 2)):
            yield from _norm_tensors(spec, f"{place}.other_norm")
            yield from _norm_tensors(spec, f"{place}.norm")
            if rank is not None:
                yield TensorSpec(f"{place}.down.weight", (rank, 2 * width))
            yield TensorSpec(f"{place}.up.weight", (width, 2 * width if rank is None else rank))
            yield TensorSpec(f"{place}.up.bias", (width,))
            yield TensorSpec(f"{place}.gate", (1,))


def pruned_tensors(spec: ModelSpec) -> Iterator[TensorSpec]:
    """The tensors of the model's own layers that have head groups or neurons to remove."""
    return (tensor for tensor in tensors_of(spec) if tensor.unit is not None and tensor.name.startswith("layers."))


def by_unit(array: Array, tensor: TensorSpec) -> Array:
    """``array`` with the counted axis split in two: [.., count, size, ..]; a view where the array can give one."""
    shape = tuple(array.shape)
    return array.reshape(*shape[: tensor.axis], tensor.count, tensor.size, *shape[tensor.axis + 1 :])


def _at(axis: int, chosen: Any) -> tuple[Any, ...]:
    return (slice(None),) * axis + (chosen,)


def _rows(kept: Kept, tensor: TensorSpec) -> tuple[Any, ...]:
    """The index of all rows or columns of the units that stay."""
    rows = [unit * tensor.size + row for unit in kept.of(tensor) for row in range(tensor.size)]
    return _at(tensor.axis, rows)


def take(state: Mapping[str, Array], spec: ModelSpec, kept: Kept) -> dict[str, Array]:
    """The state of a decoder that has only the units of ``kept``, in that order. What has no units stays as it is."""
    return {**state, **{t.name: state[t.name][_rows(kept, t)] for t in pruned_tensors(spec)}}


def put_back(state: Mapping[str, Array], spec: ModelSpec, kept: Kept, taken: Mapping[str, Array]) -> None:
    """Inverse of `take`, in place: write ``taken``, which has the units of ``kept``, into ``state`` of ``spec``.

    Units that are not kept stay as they are; what has no units is copied whole.
    """
    units = {tensor.name: tensor for tensor in pruned_tensors(spec)}
    for name, array in state.items():
        array[_rows(kept, units[name]) if name in units else ...] = taken[name]


def prefix(
    state: Mapping[str, Array], spec: ModelSpec, groups: Sequence[int], neurons: Sequence[int]
) -> dict[str, Array]:
    """The state cut to the first ``groups`` and ``neurons`` of each layer; views. Tensors that are as narrow stay."""
    found = dict(state)
    for tensor in pruned_tensors(spec):
        assert tensor.layer is not None
        counts = groups if tensor.unit == "groups" else neurons
        found[tensor.name] = state[tensor.name][_at(tensor.axis, slice(counts[tensor.layer] * tensor.size))]
    return found


def with_gates_folded(state: Mapping[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """The state with every gate multiplied into the columns of its head in the output projection; gates are left out."""
    found = {name: array for name, array in state.items() if not name.endswith("attn.gate")}
    for index, layer in enumerate(spec.layers):
        name = f"layers.{index}.attn.out_proj.weight"
        if layer.n_head:
            columns = found[name].reshape(-1, layer.n_head, layer.head_dim)
            folded = columns * state[f"layers.{index}.attn.gate"][:, None]
            found[name] = folded.reshape(-1, layer.n_head * layer.head_dim)
    return found
