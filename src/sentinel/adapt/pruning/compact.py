"""Surgery: repeat grouped keys and values, bring heads and neurons into order, and really remove what a plan drops."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from sentinel.adapt.pruning.plan import PruningPlan, RemovalOrder
from sentinel.formats.checkpoint import build
from sentinel.models.decoder import Decoder
from sentinel.models.tensors import Kept, take, tensors_of


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
    return _with_record(
        build(spec, {name: tensor.detach() for name, tensor in state.items()}, "the model with repeated keys"), decoder
    )


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
    counts = spec.with_counts([len(chosen) for chosen in groups], [len(chosen) for chosen in neurons])
    smaller = dataclasses.replace(counts, out_bias=spec.out_bias or biases, down_bias=spec.down_bias or biases)
    state = take({name: tensor.detach() for name, tensor in decoder.state_dict().items()}, spec, Kept(groups, neurons))
    added = {t.name: torch.zeros(t.shape, device=decoder.device) for t in tensors_of(smaller) if t.name not in state}
    return _with_record(
        build(smaller, {name: tensor.clone() for name, tensor in (state | added).items()}, "the pruned model"), decoder
    )


def _with_record(made: Decoder, source: Decoder) -> Decoder:
    made.record = source.record
    return made
