"""A family's own architecture of llama.cpp, whose layers are all alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from sentinel.errors import InputError
from sentinel.formats.gguf.config import config_of
from sentinel.formats.gguf.held import Held, require_same, who
from sentinel.formats.gguf.rewriting import (
    in_blocks,
    one_group_size,
    one_head_size,
    padded,
    with_biases,
    with_scaled_queries,
)
from sentinel.formats.gguf.rope import rope_fields
from sentinel.models.families import family_of, family_of_gguf
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import DOWN, NEURONS, OUTPUT, QKV, GGUFFields, GGUFLayout
from sentinel.models.families.weights import State, written
from sentinel.models.features import EVERY_GROUP, INTEGRATION, require_supported
from sentinel.models.spec import ModelSpec
from sentinel.progress import say

# Of one architecture or other; what the family's own lacks is found by reading the file back.
SUPPORTS = EVERY_GROUP - INTEGRATION
KINDS = {  # of projections, by the field of their bias; and how it is called
    "qkv_bias": (QKV, "a bias of queries, keys and values"),
    "out_bias": (OUTPUT, "a bias of the attention output"),
    "up_bias": (NEURONS, "a bias of the neurons"),
    "down_bias": (DOWN, "a bias of the MLP output"),
}


def held(spec: ModelSpec, state: State, block: int, *, pad: bool) -> Held:
    """The model as its family's architecture holds it, with neurons in blocks of ``block``.

    With ``pad``, layers that differ, or have fewer heads than the architecture wants, get heads and neurons of zeros, which
    save nothing. Raises `InputError` for what the architecture does not have, by name.
    """
    family = family_of(spec.family)
    layout = family.gguf
    if layout is None:
        raise InputError(f"llama.cpp has no architecture for models of family {spec.family}")
    name = who(layout.architecture)
    require_supported(spec, SUPPORTS, name)
    one_head_size(spec, name)
    sizes = _sizes(spec, layout, block, name)
    if sizes != _own_sizes(spec, block) and not pad:
        raise InputError(f"{name} can't do this model: its layers differ, or have fewer heads than it wants")
    larger, state = padded(spec, state, *sizes, one_group_size(spec, name))
    larger, state = _with_what_it_needs(larger, state, layout, name)
    made = _made(family, layout, larger, state)
    told = _read_back(made)
    larger, state = with_scaled_queries(larger, state, [layer.attention.scale for layer in told.layers])
    require_same(larger, told, layout.architecture)
    made = replace(made, spec=larger, state=state)
    if pad:
        say(
            f"{name} has layers of one size: heads and neurons of zeros fill them up, so that pruning saves nothing there"
        )
    return made


def _made(family: Family, layout: GGUFLayout, spec: ModelSpec, state: State) -> Held:
    of_rope, extra = _rope(spec, layout)
    fields = {**of_rope, **_fields(spec, layout)}
    return Held(layout.architecture, spec, state, fields, extra, lambda values: _tensors(family, layout, spec, values))


def _own_sizes(spec: ModelSpec, block: int) -> tuple[list[int], list[int]]:
    """Groups and neurons of each layer as they are, the neurons in blocks."""
    return [y.n_kv_head for y in spec.layers], [in_blocks(y.intermediate_size, block) for y in spec.layers]


def _sizes(spec: ModelSpec, layout: GGUFLayout, block: int, name: str) -> tuple[list[int], list[int]]:
    """Groups and neurons of each layer in the file: of all layers as many."""
    groups, neurons = _own_sizes(spec, block)
    most = max(*groups, 1)
    if layout.square:
        whole, rest = divmod(spec.n_embd, one_head_size(spec, name) * one_group_size(spec, name))
        if rest or whole < most:
            raise InputError(f"{name} can't do this model: its heads are not as wide as the model together")
        most = whole
    if set(groups) != {most} and any(layer.attention.qk_norm == "whole" for layer in spec.layers):
        raise InputError(
            f"{name} can't do this model: it has layers of one size, and heads of zeros would change what norms over "
            "all heads divide by"
        )
    return [most] * spec.n_layer, [max(*neurons, block)] * spec.n_layer


def _with_what_it_needs(spec: ModelSpec, state: State, layout: GGUFLayout, name: str) -> tuple[ModelSpec, State]:
    """The model with biases of zeros where the architecture has to have them or only some layers do, and with an LM head of
    its own where it asks for one."""
    there: dict[str, bool] = {}
    for flag, (kinds, called) in KINDS.items():
        layers = [layer.attention if flag in ("qkv_bias", "out_bias") else layer.mlp for layer in spec.layers]
        needed = any(f"{kind}.bias" in layout.needs for kind in kinds)
        there[flag] = needed or any(getattr(part, flag) for part in layers)
        if there[flag] and not set(kinds) & set(layout.bias_kinds):
            index = next(i for i, part in enumerate(layers) if getattr(part, flag))
            raise InputError(f"{name} can't do this model: it does not support {called} in layer {index}")
    spec, state = with_biases(spec, state, [there] * spec.n_layer)
    if spec.tied_head and "output.weight" in layout.needs:
        spec = replace(spec, tied_head=False)
        state = {**state, "lm_head.weight": state["embed.weight"]}
    if not spec.tied_head and not layout.own_head:
        raise InputError(f"{name} can't do this model: it does not support an LM head of its own")
    return spec, state


def _fields(spec: ModelSpec, layout: GGUFLayout) -> dict[str, Any]:
    layer = spec.layers[0]
    return {
        "block_count": spec.n_layer,
        "context_length": spec.max_seq_len,
        "embedding_length": spec.n_embd,
        "vocab_size": spec.vocab_size,
        "feed_forward_length": layer.intermediate_size,
        "attention.head_count": layer.n_head,
        "attention.head_count_kv": layer.n_kv_head,
        "attention.key_length": layer.head_dim,
        "attention.value_length": layer.head_dim,
        layout.eps[0]: spec.norm.eps,
        **layout.own(spec),
    }


def _rope(spec: ModelSpec, layout: GGUFLayout) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rotary settings: of layers without a window where they differ, since those with one have fields of the family's."""
    parts = sorted((layer.attention for layer in spec.layers), key=lambda part: part.window is not None)
    ropes = [part.rope for part in parts if part.rope is not None]
    return rope_fields(ropes[0], parts[0].head_dim) if layout.rotary is not None and ropes else ({}, {})


def _tensors(family: Family, layout: GGUFLayout, spec: ModelSpec, state: State) -> Iterator[tuple[str, Tensor]]:
    kinds = {module: kind for kind, module in layout.tensors.items()}
    for tensor in written(family.rules(spec), spec, state):
        module, _, part = tensor.template.rpartition(".")
        if module not in kinds:
            raise InputError(f"{who(layout.architecture)} can't do this model: it has no place for {tensor.name!r}")
        kind = kinds[module]
        conversion = layout.conversions.get(kind)
        values = tensor.tensor if conversion is None else conversion.write(tensor.tensor, tensor.layer)
        yield f"blk.{tensor.index}.{kind}.{part}" if "{i}" in module else f"{kind}.{part}", values


def _read_back(made: Held) -> ModelSpec:
    """What a reader makes of the file."""
    name = who(made.architecture)
    fields = GGUFFields(name, made.architecture, made.fields, made.names())
    reader, layout = family_of_gguf(made.architecture, made.fields, name)
    config = config_of(reader, layout, fields, lambda tensor: made.extra[tensor], made.spec.vocab_size)
    return reader.spec_from_config(config)
