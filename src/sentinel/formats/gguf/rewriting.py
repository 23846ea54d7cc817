"""The same function by other weights: more heads, neurons and biases, of zeros, and scaled queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from sentinel.errors import InputError
from sentinel.models.families.weights import State, fuse_qkv, split_qkv
from sentinel.models.spec import LayerSpec, ModelSpec
from sentinel.models.tensors import tensors_of


def padded(
    spec: ModelSpec, state: State, groups: Sequence[int], neurons: Sequence[int], group_size: int
) -> tuple[ModelSpec, State]:
    """The model with so many head groups and neurons in each layer, of which the first are its own.

    A layer that had no heads gets groups of ``group_size``.
    """
    layers: list[LayerSpec] = []
    for layer, wanted, width in zip(spec.layers, groups, neurons, strict=True):
        part = layer.attention
        part = replace(part, n_head=wanted * (part.group_size or group_size), n_kv_head=wanted)
        layers.append(LayerSpec(part, replace(layer.mlp, intermediate_size=width)))
    larger = replace(spec, layers=tuple(layers))
    return larger, _filled(spec, larger, state)


def with_biases(spec: ModelSpec, state: State, flags: Sequence[Mapping[str, bool]]) -> tuple[ModelSpec, State]:
    """The model with more biases, of zeros: by the names of the fields of `AttentionSpec` and `MlpSpec`, per layer."""
    layers = tuple(
        LayerSpec(
            replace(layer.attention, **{n: b for n, b in wanted.items() if hasattr(layer.attention, n)}),
            replace(layer.mlp, **{n: b for n, b in wanted.items() if hasattr(layer.mlp, n)}),
        )
        for layer, wanted in zip(spec.layers, flags, strict=True)
    )
    larger = replace(spec, layers=layers)
    return larger, _filled(spec, larger, state)


def with_scaled_queries(spec: ModelSpec, state: State, scales: Sequence[float | None]) -> tuple[ModelSpec, State]:
    """The model with these scales of scores (`AttentionSpec.scale`), for which its queries make up."""
    state = dict(state)
    layers: list[LayerSpec] = []
    for index, (layer, scale) in enumerate(zip(spec.layers, scales, strict=True)):
        part = replace(layer.attention, scale=scale)
        by = layer.attention.score_scale / part.score_scale
        names = ("q_norm.weight",) if part.qk_norm else ("qkv_proj.weight", "qkv_proj.bias")
        for name in (f"layers.{index}.attn.{name}" for name in names):
            if by == 1.0 or name not in state or not layer.n_head:
                continue
            if part.qk_norm:
                state[name] = state[name] * by
            else:
                query, key, value = split_qkv(state[name], layer)
                state[name] = fuse_qkv(query * by, key, value, layer)
        layers.append(replace(layer, attention=part))
    return replace(spec, layers=tuple(layers)), state


def one_head_size(spec: ModelSpec, who: str) -> int:
    """The size of the heads of all layers that have some."""
    sizes = {layer.head_dim for layer in spec.layers if layer.n_head} or {spec.layers[0].head_dim}
    return _one(sizes, "head sizes", who)


def one_group_size(spec: ModelSpec, who: str) -> int:
    """How many query heads a key/value head has in all layers that have some."""
    sizes = {layer.group_size for layer in spec.layers if layer.n_head} or {1}
    return _one(sizes, "query heads per key/value head", who)


def in_blocks(neurons: int, block: int) -> int:
    """So many neurons, or more, that their columns divide into blocks."""
    return -(-neurons // block) * block


def _one(values: set[int], name: str, who: str) -> int:
    if len(values) > 1:
        raise InputError(
            f"{who} can't do this model: its layers have {name} of {sorted(values)}, and may have one only"
        )
    return values.pop()


def _filled(spec: ModelSpec, larger: ModelSpec, state: State) -> State:
    """The state of ``larger``: that of ``spec`` where it has some, and zeros."""
    if larger == spec:
        return state
    own = {tensor.name: tensor for tensor in tensors_of(spec)}
    found: State = {}
    for tensor in tensors_of(larger):
        old = state.get(tensor.name)
        if old is not None and tuple(old.shape) == tensor.shape:
            found[tensor.name] = old
            continue
        if old is None and tensor.name.endswith(".gate"):
            continue  # folded before
        like = state["embed.weight"] if old is None else old
        new = torch.zeros(tensor.shape, dtype=like.dtype, device=like.device)
        if old is not None:
            rows = own[tensor.name].count * own[tensor.name].size
            new.narrow(tensor.axis, 0, rows).copy_(old)
        found[tensor.name] = new
    return found


def without_attention_biases(spec: ModelSpec, indices: Sequence[int]) -> ModelSpec:
    """The model without biases of the attention in these layers."""
    layers = list(spec.layers)
    for index in indices:
        part = replace(layers[index].attention, qkv_bias=False, out_bias=False)
        layers[index] = replace(layers[index], attention=part)
    return replace(spec, layers=tuple(layers))
