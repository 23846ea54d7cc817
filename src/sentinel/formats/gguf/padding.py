"""The same function in other sizes: layers padded with heads and neurons of zeros, and biases of zeros."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from sentinel.errors import InputError
from sentinel.models.families.weights import State
from sentinel.models.spec import LayerSpec, ModelSpec
from sentinel.models.tensors import tensors_of


def padded(
    spec: ModelSpec, state: State, groups: Sequence[int], neurons: Sequence[int], who: str
) -> tuple[ModelSpec, State]:
    """The model with so many head groups and neurons in each layer, of which the first are its own.

    Raises `InputError` that names ``who`` for groups of several sizes, and for norms over all heads, which count the heads.
    """
    attention = [layer.attention for layer in spec.layers]
    if list(groups) == [part.n_kv_head for part in attention]:
        group_size = 1  # of no use: no heads are added
    else:
        group_size = _one({part.group_size for part in attention if part.n_head}, "heads per key/value head", who, 1)
        if any(part.qk_norm == "whole" for part in attention):
            raise InputError(
                f"{who} can't do this model: its layers have unequal heads, and heads of zeros would change "
                "what the norms over all heads divide by"
            )
    layers: list[LayerSpec] = []
    for layer, wanted, width in zip(spec.layers, groups, neurons, strict=True):
        part = layer.attention
        if wanted != part.n_kv_head:
            part = replace(part, n_head=wanted * group_size, n_kv_head=wanted)
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


def one_head_size(spec: ModelSpec, who: str) -> int:
    """The size of the heads of all layers that have some."""
    sizes = {layer.head_dim for layer in spec.layers if layer.n_head} or {spec.layers[0].head_dim}
    return _one(sizes, "head sizes", who, 0)


def in_blocks(neurons: int, block: int) -> int:
    """So many neurons, or more, that their columns divide into blocks."""
    return -(-neurons // block) * block


def _one(values: set[int], name: str, who: str, default: int) -> int:
    if len(values) > 1:
        raise InputError(f"{who} can't do this model: its layers have {name} {sorted(values)}, and must have one")
    return values.pop() if values else default


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


def without_output_bias(spec: ModelSpec, index: int) -> ModelSpec:
    """The model without the bias of the attention output in one layer."""
    layers = list(spec.layers)
    layers[index] = replace(layers[index], attention=dataclasses.replace(layers[index].attention, out_bias=False))
    return replace(spec, layers=tuple(layers))
