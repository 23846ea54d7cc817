"""Surgery: repeat grouped keys and values, bring heads and neurons into order, and really remove what a plan drops."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from sentinel.adapt.plan import PruningPlan, RemovalOrder
from sentinel.models.checkpoint import build
from sentinel.models.decoder import Decoder
from sentinel.models.spec import LayerSpec

State = dict[str, Tensor]


def expand_kv(decoder: Decoder) -> Decoder:
    """The same function with a key/value head for every query head, so that each head can be removed on its own."""
    layers = tuple(dataclasses.replace(layer, n_kv_head=layer.n_head) for layer in decoder.spec.layers)
    if layers == decoder.spec.layers:
        return decoder
    spec = dataclasses.replace(decoder.spec, layers=layers)
    state = decoder.state_dict()
    for index, layer in enumerate(decoder.spec.layers):
        for part in ("weight", "bias"):
            name = f"layers.{index}.attn.qkv_proj.{part}"
            if name in state and layer.n_head:
                rest = state[name].shape[1:]
                rows = state[name].view(layer.n_kv_head, layer.group_size + 2, layer.head_dim, *rest)
                query = rows[:, : layer.group_size]
                key, value = (rows[:, layer.group_size + i, None].expand_as(query) for i in (0, 1))
                state[name] = torch.stack((query, key, value), dim=2).reshape(-1, *rest)
    return build(spec, {name: tensor.detach() for name, tensor in state.items()}, "the model with repeated keys")


def compact(decoder: Decoder, plan: PruningPlan, *, biases: bool = False) -> Decoder:
    """A smaller decoder of what ``plan`` keeps, in the plan's order. ``biases`` gives projections that lack one a zero
    bias, for compensation to fill. Weights are copied. Raises `InputError` for a plan of another model.
    """
    plan.check(decoder.spec)
    return select(decoder, plan.groups, plan.kept_neurons, biases=biases)


def in_nested_order(decoder: Decoder, order: RemovalOrder) -> Decoder:
    """The same function with heads and neurons stored most important first."""
    return compact(decoder, order.plan(0.0, 0.0))


def select(
    decoder: Decoder, groups: Sequence[Sequence[int]], neurons: Sequence[Sequence[int]], *, biases: bool = False
) -> Decoder:
    """A decoder of the given head groups and neurons of each layer, in the given order."""
    spec = decoder.spec
    layers = tuple(
        LayerSpec(layer.group_size * len(g), len(g), layer.head_dim, len(f))
        for layer, g, f in zip(spec.layers, groups, neurons, strict=True)
    )
    smaller = dataclasses.replace(
        spec, layers=layers, out_bias=spec.out_bias or biases, down_bias=spec.down_bias or biases
    )
    state: State = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
    for index, layer in enumerate(spec.layers):
        _select_layer(state, f"layers.{index}", layer, list(groups[index]), list(neurons[index]))
        for projection, wanted in (("attn.out_proj", smaller.out_bias), ("mlp.down_proj", smaller.down_bias)):
            name = f"layers.{index}.{projection}.bias"
            if wanted and name not in state:
                state[name] = torch.zeros(spec.n_embd)
    return build(smaller, {name: tensor.clone() for name, tensor in state.items()}, "the pruned model")


def _select_layer(state: State, prefix: str, layer: LayerSpec, groups: list[int], neurons: list[int]) -> None:
    per_group, dim = layer.group_size, layer.head_dim
    for part in ("weight", "bias"):
        name = f"{prefix}.attn.qkv_proj.{part}"
        if name in state:
            rest = state[name].shape[1:]
            rows = state[name].reshape(layer.n_kv_head, (per_group + 2) * dim, *rest)
            state[name] = rows[groups].reshape(-1, *rest)
        for projection in ("up_proj", "gate_proj"):
            name = f"{prefix}.mlp.{projection}.{part}"
            if name in state:
                state[name] = state[name][neurons]
    out, gate, down = (f"{prefix}.{n}" for n in ("attn.out_proj.weight", "attn.gate", "mlp.down_proj.weight"))
    width = state[out].shape[0]
    state[out] = state[out].view(width, layer.n_kv_head, per_group * dim)[:, groups].reshape(width, -1)
    state[gate] = state[gate].view(layer.n_kv_head, per_group)[groups].reshape(-1)
    state[down] = state[down][:, neurons]
