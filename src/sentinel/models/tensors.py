"""Every tensor of a decoder: its name, its shape, and which axis counts head groups or neurons.

What follows from that is a loop over the table: taking units out, using a prefix of them, bringing them back. It works on
torch tensors and NumPy arrays alike, and imports neither. ::

    layers.i.attn.qkv_proj   weight [groups * (q + k + v), C]   bias [groups * (q + k + v)]
    layers.i.attn.q_norm     weight [D], or [groups * q] where it spans all heads
    layers.i.attn.k_norm     weight [D], or [groups * k]
    layers.i.attn.gate       [heads], which are groups * heads of a group
    layers.i.attn.out_proj   weight [C, groups * q]             bias [C]
    layers.i.mlp.gate_proj, up_proj   weight [neurons, C]       bias [neurons]
    layers.i.mlp.down_proj   weight [C, neurons]                bias [C]

Shape letters: C width, D head dim; q stands for the D rows of each query head of a group, k and v for D rows each. A unit
is one head group or one neuron; its rows or columns are neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sentinel.models.spec import LayerSpec, ModelSpec
from sentinel.models.width import Kept, Width

Unit = Literal["groups", "neurons"]
Array = Any  # a torch tensor or a NumPy array: what is done here, both can do


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the decoder's state.

    Where ``unit`` says what ``axis`` counts, there are ``count`` units of ``size`` neighbouring rows or columns each, in
    layer ``layer``. The rows of a group are as many equal parts as ``parts`` has letters: "qqkv" are those of two query
    heads, of the key head and of the value head.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    unit: Unit | None = None
    axis: int = 0
    count: int = 0
    size: int = 0
    parts: str = ""

    @property
    def is_matrix(self) -> bool:
        """True for what is multiplied with, and not looked up or added."""
        return self.name.endswith(".weight") and len(self.shape) == 2 and ".positions." not in f".{self.name}"

    def kept(self, kept: Kept) -> list[int]:
        """The units of this tensor that stay."""
        assert self.layer is not None and self.unit is not None
        return list((kept.groups if self.unit == "groups" else kept.neurons)[self.layer])

    def used(self, width: Width) -> int:
        """How many units of this tensor are used."""
        assert self.layer is not None and self.unit is not None
        return (width.groups if self.unit == "groups" else width.neurons)[self.layer]


def tensors_of(spec: ModelSpec, prefix: str = "") -> Iterator[TensorSpec]:
    """All tensors of a decoder of that specification, as its ``state_dict`` names them, the frozen baseline's too."""
    width = spec.n_embd
    yield TensorSpec(f"{prefix}embed.weight", (spec.vocab_size, width))
    if spec.learned_positions:
        yield TensorSpec(f"{prefix}positions.weight", (spec.max_seq_len, width))
    for index, layer in enumerate(spec.layers):
        yield from _layer_tensors(spec, layer, index, f"{prefix}layers.{index}")
    yield from _norm_tensors(spec, f"{prefix}final_norm")
    if not spec.tied_head:
        yield TensorSpec(f"{prefix}lm_head.weight", (spec.vocab_size, width))
    if spec.head_bias:
        yield TensorSpec(f"{prefix}lm_head.bias", (spec.vocab_size,))
    if spec.integration is not None:
        yield from _fusion_tensors(spec, f"{prefix}integration")
        if spec.integration.baseline is not None:
            yield from tensors_of(spec.integration.baseline, f"{prefix}baseline.")


def _norm_tensors(spec: ModelSpec, name: str) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (spec.n_embd,))
    if spec.norm.kind == "layernorm":
        yield TensorSpec(f"{name}.bias", (spec.n_embd,))


def _layer_tensors(spec: ModelSpec, layer: LayerSpec, index: int, name: str) -> Iterator[TensorSpec]:
    for norm in spec.block.norms:
        yield from _norm_tensors(spec, f"{name}.{norm}")
    yield from _attention_tensors(spec.n_embd, layer, index, f"{name}.attn")
    width, mlp = spec.n_embd, layer.mlp
    neurons: dict[str, Any] = {"layer": index, "unit": "neurons", "count": mlp.intermediate_size, "size": 1}
    for projection in ("gate_proj", "up_proj") if mlp.gated else ("up_proj",):
        yield TensorSpec(f"{name}.mlp.{projection}.weight", (mlp.intermediate_size, width), **neurons)
        if mlp.up_bias:
            yield TensorSpec(f"{name}.mlp.{projection}.bias", (mlp.intermediate_size,), **neurons)
    yield TensorSpec(f"{name}.mlp.down_proj.weight", (width, mlp.intermediate_size), **neurons, axis=1)
    if mlp.down_bias:
        yield TensorSpec(f"{name}.mlp.down_proj.bias", (width,), layer=index)


def _attention_tensors(width: int, layer: LayerSpec, index: int, name: str) -> Iterator[TensorSpec]:
    attention, dim = layer.attention, layer.head_dim
    queries = "q" * layer.group_size

    def groups(parts: str, each: int, axis: int = 0) -> dict[str, Any]:
        sizes = {"count": layer.n_kv_head, "size": len(parts) * each, "parts": parts}
        return {"layer": index, "unit": "groups", "axis": axis, **sizes}

    rows = groups(queries + "kv", dim)
    yield TensorSpec(f"{name}.qkv_proj.weight", (layer.qkv_rows, width), **rows)
    if attention.qkv_bias:
        yield TensorSpec(f"{name}.qkv_proj.bias", (layer.qkv_rows,), **rows)
    if attention.qk_norm == "head":
        yield TensorSpec(f"{name}.q_norm.weight", (dim,), layer=index)
        yield TensorSpec(f"{name}.k_norm.weight", (dim,), layer=index)
    elif attention.qk_norm == "whole":
        yield TensorSpec(f"{name}.q_norm.weight", (layer.n_head * dim,), **groups(queries, dim))
        yield TensorSpec(f"{name}.k_norm.weight", (layer.n_kv_head * dim,), **groups("k", dim))
    yield TensorSpec(f"{name}.gate", (layer.n_head,), **groups(queries, 1))
    yield TensorSpec(f"{name}.out_proj.weight", (width, layer.n_head * dim), **groups(queries, dim, axis=1))
    if attention.out_bias:
        yield TensorSpec(f"{name}.out_proj.bias", (width,), layer=index)


def fusions_of(spec: ModelSpec) -> Iterator[str]:
    """Names of all fusions of an integration, those with early states first."""
    if spec.integration is not None:
        kinds = {"skips": spec.integration.skips, "adapters": spec.integration.baseline is not None}
        for kind in (kind for kind, wanted in kinds.items() if wanted):
            yield from (f"integration.{kind}.{i}" for i in range(spec.n_layer // 2))


def _fusion_tensors(spec: ModelSpec, name: str) -> Iterator[TensorSpec]:
    assert spec.integration is not None
    width, rank = spec.n_embd, spec.integration.rank
    for place in (f"{name}.{fusion.removeprefix('integration.')}" for fusion in fusions_of(spec)):
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
    rows = [unit * tensor.size + row for unit in tensor.kept(kept) for row in range(tensor.size)]
    return _at(tensor.axis, rows)


def take(state: Mapping[str, Array], spec: ModelSpec, kept: Kept) -> dict[str, Array]:
    """The state of a decoder that has only the units of ``kept``, in that order. What has no units stays as it is."""
    return {**state, **{t.name: taken(state[t.name], t, kept) for t in pruned_tensors(spec)}}


def taken(array: Array, tensor: TensorSpec, kept: Kept) -> Array:
    """Of ``array``, which is ``tensor``, the units of ``kept``, in that order; all of it where it has no units."""
    return array if tensor.unit is None else array[_rows(kept, tensor)]


def put_back(state: Mapping[str, Array], spec: ModelSpec, kept: Kept, taken: Mapping[str, Array]) -> None:
    """Inverse of `take`, in place: write ``taken``, which has the units of ``kept``, into ``state`` of ``spec``.

    Units that are not kept stay as they are; what has no units is copied whole.
    """
    units = {tensor.name: tensor for tensor in pruned_tensors(spec)}
    for name, array in state.items():
        array[_rows(kept, units[name]) if name in units else ...] = taken[name]


def prefix(state: Mapping[str, Array], spec: ModelSpec, width: Width) -> dict[str, Array]:
    """The state cut to the first groups and neurons that ``width`` says; views. Tensors that are as narrow stay."""
    used = {t.name: state[t.name][_at(t.axis, slice(t.used(width) * t.size))] for t in pruned_tensors(spec)}
    return {**state, **used}


def expanded(state: Mapping[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """The state with a group of its own for every query head: keys and values are repeated (`LayerSpec.group_size` 1)."""
    found = dict(state)
    for tensor in pruned_tensors(spec):
        if tensor.unit == "groups" and tensor.count:
            each = tensor.size // len(tensor.parts)
            found[tensor.name] = state[tensor.name][_at(tensor.axis, _expanded_rows(tensor, spec, each))]
    return found


def _expanded_rows(tensor: TensorSpec, spec: ModelSpec, each: int) -> list[int]:
    """Which row each row of the expanded tensor is: per query head its own part, then those that its group shares."""
    assert tensor.layer is not None
    queries = [place for place, letter in enumerate(tensor.parts) if letter == "q"]
    shared = [place for place, letter in enumerate(tensor.parts) if letter != "q"]
    heads = [[place, *shared] for place in queries] or [shared] * spec.layers[tensor.layer].group_size
    places = [place for head in heads for place in head]
    starts = [unit * tensor.size + place * each for unit in range(tensor.count) for place in places]
    return [start + row for start in starts for row in range(each)]


def with_gates_folded(state: Mapping[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """The state with every gate multiplied into what it closes; gates are left out.

    A head's gate goes into the columns of the output projection that read it, a fusion's into its last matrix and bias.
    The output projection may be narrower than the specification, as those of a width are.
    """
    found = {name: array for name, array in state.items() if not name.endswith(".gate")}
    for start, part in _with_baseline(spec):
        for index, layer in enumerate(part.layers):
            gate, name = f"{start}layers.{index}.attn.gate", f"{start}layers.{index}.attn.out_proj.weight"
            if gate in state and name in found and found[name].shape[1]:
                columns = found[name].reshape(found[name].shape[0], -1, layer.head_dim)
                folded = columns * state[gate][: columns.shape[1], None]
                found[name] = folded.reshape(found[name].shape)
    for fusion in fusions_of(spec):
        for name in (f"{fusion}.up.weight", f"{fusion}.up.bias"):
            if f"{fusion}.gate" in state and name in found:
                found[name] = found[name] * state[f"{fusion}.gate"]
    return found


def with_scales_folded(state: Mapping[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """`with_gates_folded`, and with what layers add and the logits scaled by weights: no other scale is left to apply.

    The scale of residuals goes into the output projections, or into the norms after them; that of the logits into the
    final norm and the bias of the LM head.
    """
    found = with_gates_folded(state, spec)

    def scale(name: str, by: float) -> None:
        for part in (f"{name}.weight", f"{name}.bias"):
            if part in found and by != 1.0:
                found[part] = found[part] * by

    for start, part in _with_baseline(spec):
        ends = ("attn_post_norm", "mlp_post_norm") if part.block.post_norm else ("attn.out_proj", "mlp.down_proj")
        for index in range(part.n_layer):
            for end in ends:
                scale(f"{start}layers.{index}.{end}", part.block.residual_scale)
    scale("final_norm", spec.logit_scale)
    if "lm_head.bias" in found and spec.logit_scale != 1.0:
        found["lm_head.bias"] = found["lm_head.bias"] * spec.logit_scale
    return found


def _with_baseline(spec: ModelSpec) -> list[tuple[str, ModelSpec]]:
    """The model and, if it has one, its baseline, each with what the names of its tensors begin with."""
    baseline = None if spec.integration is None else spec.integration.baseline
    return [("", spec)] if baseline is None else [("", spec), ("baseline.", baseline)]
