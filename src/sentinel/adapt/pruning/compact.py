"""Surgery: repeat grouped keys and values, bring heads and neurons into order, and really remove what a plan drops."""

from __future__ import annotations

import dataclasses

import torch

from sentinel.adapt.pruning.plan import PruningPlan, RemovalOrder
from sentinel.formats.checkpoint import build
from sentinel.models.decoder import Decoder
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import expanded, take, tensors_of
from sentinel.models.width import Kept, with_own_groups


def expand_kv(decoder: Decoder) -> Decoder:
    """The same function with a key/value head for every query head, so that each head can be removed on its own."""
    spec = with_own_groups(decoder.spec)
    if spec == decoder.spec:
        return decoder
    state = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
    return _with_record(build(spec, expanded(state, decoder.spec), "the model with repeated keys"), decoder)


def compact(decoder: Decoder, plan: PruningPlan) -> Decoder:
    """A smaller decoder of what ``plan`` keeps, in the plan's order. Raises `InputError` for a plan of another model."""
    plan.check(decoder.spec)
    return select(decoder, plan.kept)


def in_nested_order(decoder: Decoder, order: RemovalOrder) -> Decoder:
    """The same function with heads and neurons stored most important first."""
    return compact(decoder, order.plan(0.0, 0.0))


def select(decoder: Decoder, kept: Kept, *, biases: bool = False) -> Decoder:
    """A decoder of the given head groups and neurons of each layer, in the given order. Weights are copied. ``biases``
    gives projections that lack one a zero bias, for compensation to fill."""
    spec = decoder.spec
    smaller = kept.width.of(spec)
    if biases:
        smaller = with_output_biases(smaller)
    state = take({name: tensor.detach() for name, tensor in decoder.state_dict().items()}, spec, kept)
    added = {t.name: torch.zeros(t.shape, device=decoder.device) for t in tensors_of(smaller) if t.name not in state}
    return _with_record(
        build(smaller, {name: tensor.clone() for name, tensor in (state | added).items()}, "the pruned model"), decoder
    )


def with_output_biases(spec: ModelSpec) -> ModelSpec:
    """The same model with biases on all output projections."""
    layers = tuple(
        dataclasses.replace(
            layer,
            attention=dataclasses.replace(layer.attention, out_bias=True),
            mlp=dataclasses.replace(layer.mlp, down_bias=True),
        )
        for layer in spec.layers
    )
    return dataclasses.replace(spec, layers=layers)


def _with_record(made: Decoder, source: Decoder) -> Decoder:
    made.record = source.record
    return made
