"""Reads the folder that `sentinel export` writes for transformers where layers differ. Nothing of its code is run.

``config.json`` has the fields of `hugging_face.modeling_sentinel`, ``per_layer_config`` among them, and weights have the
decoder's own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sentinel.errors import InputError
from sentinel.models.families import family_of
from sentinel.models.families.weights import Stored
from sentinel.models.layer_spec import AttentionSpec, LayerSpec, MlpSpec, RopeSpec
from sentinel.models.rotary import frequencies
from sentinel.models.spec import BlockSpec, ModelSpec, NormSpec
from sentinel.models.tensors import tensors_of
from sentinel.plain import is_mapping, is_row

BLOCK = ("pre_norm", "post_norm", "parallel", "shared_norm")


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The specification that such a ``config.json`` tells; `InputError` names the field that is missing or damaged."""
    try:
        layers = _layer_configs(config)
        ropes = [_rope(table) for table in config["rotary_tables"]]
        types = config.get("layer_types") or ["full_attention"] * len(layers)
        return ModelSpec(
            family_of(config["family"]).model_type,
            config["vocab_size"],
            config["hidden_size"],
            config["max_position_embeddings"],
            tuple(_layer(own, ropes, kind) for own, kind in zip(layers, types, strict=True)),
            NormSpec(config["norm"], config["norm_eps"]),
            tied_head=config["tie_word_embeddings"],
            learned_positions=config["learned_positions"],
            block=BlockSpec(**{name: config[name] for name in BLOCK}),
            head_bias=config["lm_head_bias"],
            embed_scale=config["embedding_scale"],
            logit_soft_cap=config["logit_soft_cap"],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        told = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise InputError(f"config.json of an exported model {told}; export it again") from error


def _layer_configs(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The fields that each layer has."""
    listed = config["per_layer_config"]
    own = {int(number): fields for number, fields in listed.items()}
    count = config["num_hidden_layers"]
    if not all(is_mapping(fields) for fields in own.values()) or not set(own) <= set(range(count)):
        raise ValueError("per_layer_config has other layers than the model")
    common = {name: value for name, value in config.items() if name != "skip"}
    return [{**common, **own.get(index, {})} for index in range(count)]


def _layer(own: Mapping[str, Any], ropes: list[RopeSpec], kind: str) -> LayerSpec:
    skipped = own.get("skip", ())
    if not is_row(skipped) or not set(skipped) <= {"attention", "mlp"}:
        raise ValueError(f"a layer skips {skipped!r}")
    heads, neurons = "attention" not in skipped, "mlp" not in skipped
    attention = AttentionSpec(
        own["num_attention_heads"] * heads,
        own["num_key_value_heads"] * heads,
        own["head_dim"],
        rope=None if own["rotary"] is None else ropes[int(own["rotary"])],
        window=own["sliding_window"] if kind == "sliding_attention" else None,
        qk_norm=own["qk_norm"] if heads else None,
        scale=own["attention_scale"],
        soft_cap=own["attention_soft_cap"],
        qkv_bias=own["qkv_bias"],
        out_bias=own["attention_out_bias"],
    )
    size = own["intermediate_size"] * neurons
    biases = {"up_bias": own["mlp_up_bias"], "down_bias": own["mlp_down_bias"]}
    mlp = MlpSpec(size, own["hidden_act"], own["gated_mlp"], **biases)
    return LayerSpec(attention, mlp)


def _rope(table: Mapping[str, Any]) -> RopeSpec:
    """What the frequencies of a table follow from; they are the same, or the table was altered."""
    rope, told = RopeSpec(**table["settings"]), np.array(table["frequencies"], np.float32)
    if not np.array_equal(frequencies(rope, 2 * len(told)), told):
        raise ValueError("the frequencies of a rotary table do not follow from its settings")
    return rope


def read_state(spec: ModelSpec, stored: Stored) -> Stored:
    """The decoder's state: gates are 1, and halves without heads or neurons have no weights."""
    if "embed.weight" not in stored:
        raise InputError("the weights lack the tensor 'embed.weight' that the config asks for")
    like, state = stored["embed.weight"], dict(stored)
    for tensor in tensors_of(spec):
        if tensor.name.endswith(".gate"):
            state[tensor.name] = torch.ones(tensor.shape, dtype=like.dtype)
        elif 0 in tensor.shape:
            state.setdefault(tensor.name, torch.empty(tensor.shape, dtype=like.dtype))
    return state
