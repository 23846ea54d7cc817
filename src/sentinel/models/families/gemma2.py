"""Gemma 2 (``model_type: gemma2``): Gemma with norms after the halves too, soft caps, and a window in every other layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import gemma, llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import LESS_ONE, GGUFFields, in_layers
from sentinel.models.families.weights import Rule, plus_one
from sentinel.models.families.windows import layer_types, with_windows
from sentinel.models.spec import BlockSpec, ModelSpec

DEFAULTS = {
    **gemma.DEFAULTS,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
NORMS = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Gemma 2 config."""
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    spec = with_caps(config, caps, {})
    window = config.optional_integer("sliding_window", 4096)
    windowed = config.layer_types(spec.n_layer, lambda index: index % 2 == 0)
    return with_windows(spec, windowed, window)


def with_caps(config: ConfigReader, caps: dict[str, Any], attention: dict[str, Any]) -> ModelSpec:
    """What Gemma 2 and 3 share; ``caps`` are the defaults of the soft caps, ``attention`` further fields of that part."""
    if config.flag("use_bidirectional_attention", False, null=False):
        raise config.refuse("use_bidirectional_attention", True, "false")
    bias = config.flag("attention_bias", False)
    config.rename(hidden_activation="hidden_act")
    scalar = config.number("query_pre_attn_scalar", 256)
    spec = llama.llama_like(
        config,
        defaults=DEFAULTS,
        attention={
            "qkv_bias": bias,
            "out_bias": bias,
            "scale": scalar**-0.5,
            "soft_cap": config.optional_number("attn_logit_softcapping", caps["attn_logit_softcapping"]),
            **attention,
        },
        block=BlockSpec(post_norm=True),
        logit_soft_cap=config.optional_number("final_logit_softcapping", caps["final_logit_softcapping"]),
    )
    config.ignore("cache_implementation")
    return gemma.scaled(spec)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    attention = spec.layers[0].attention
    windows = [layer.attention.window for layer in spec.layers]
    scalar = round(attention.score_scale**-2, 6)
    found = gemma.write(spec)
    activation = found.pop("hidden_act")
    return {
        **found,
        "hidden_activation": activation,
        "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
        "attn_logit_softcapping": attention.soft_cap,
        "final_logit_softcapping": spec.logit_soft_cap,
        "sliding_window": next((window for window in windows if window is not None), None),
        "layer_types": layer_types(windows),
    }


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    return [*gemma.rules_without_norms(spec), *llama.rules_of_norms(spec, NORMS, plus_one)]


def _more(fields: GGUFFields, config: dict[str, Any]) -> dict[str, Any]:
    """What a GGUF file says of caps and windows. It does not tell the scale of the scores: see `score_scalar`."""
    return {
        "attn_logit_softcapping": fields.number("attn_logit_softcapping", 50.0) or None,
        "final_logit_softcapping": fields.number("final_logit_softcapping", 30.0) or None,
        "sliding_window": fields.window(4096),
        "layer_types": fields.layer_types(every=2),
        "query_pre_attn_scalar": score_scalar(config, largest=46),
    }


def _own(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `_more`; llama.cpp divides by the caps, so that a file without them has its defaults."""
    caps = {
        "attn_logit_softcapping": spec.layers[0].attention.soft_cap,
        "final_logit_softcapping": spec.logit_soft_cap,
    }
    return {**{name: cap for name, cap in caps.items() if cap is not None}, **windows(spec, every=2)}


def windows(spec: ModelSpec, every: int) -> dict[str, Any]:
    """What a GGUF file says of windows: the layers that have one, where it is not all but each ``every``-th."""
    found = [layer.attention.window for layer in spec.layers]
    pattern = [window is not None for window in found]
    usual = [(index + 1) % every != 0 for index in range(spec.n_layer)]
    listed = {} if pattern == usual else {"attention.sliding_window_pattern": pattern}
    return {"attention.sliding_window": max(window or 0 for window in found), **listed}


def score_scalar(config: dict[str, Any], largest: int) -> int:
    """As llama.cpp has it: the size of a head, but the width over the heads in the largest model, told by its layers."""
    if config["num_hidden_layers"] == largest:
        return config["hidden_size"] // config["num_attention_heads"]
    return config["head_dim"]


GGUF_NORMS = in_layers(
    "model.layers.{i}",
    post_attention_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    post_ffw_norm="post_feedforward_layernorm",
)
GGUF = dataclasses.replace(
    gemma.GGUF,
    architecture="gemma2",
    family="gemma2",
    tensors={**gemma.GGUF.tensors, **GGUF_NORMS},
    more=_more,
    own=_own,
    conversions={**gemma.GGUF.conversions, **dict.fromkeys(GGUF_NORMS, LESS_ONE)},
)
FAMILY = dataclasses.replace(
    llama.FAMILY, model_type="gemma2", architecture="Gemma2ForCausalLM", read=read, write=write, rules=rules, gguf=GGUF
)
