"""Gemma 3 (``model_type: gemma3_text``): Gemma 2 with norms of queries and keys, and five layers with a window and a
rotary base of their own before each one without."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import gemma2, llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import LESS_ONE, GGUFFields
from sentinel.models.families.rope import rope_from, write_rope
from sentinel.models.families.windows import with_windows
from sentinel.models.spec import ModelSpec

DEFAULTS = {"vocab_size": 262208, "max_position_embeddings": 131072}
PLAIN, WINDOWED = "full_attention", "sliding_attention"


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Gemma 3 text config."""
    for name, value in DEFAULTS.items():
        config.default(name, value)
    settings = _rotary_settings(config)
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    spec = gemma2.with_caps(config, caps, {"qk_norm": "head"})
    config.rename(_sliding_window_pattern="sliding_window_pattern")
    every = config.integer("sliding_window_pattern", 6)
    windowed = config.layer_types(spec.n_layer, lambda index: (index + 1) % every != 0)
    ropes = {
        kind: rope_from(config, given, spec.max_seq_len, spec.layers[0].head_dim) for kind, given in settings.items()
    }
    spec = with_windows(spec, windowed, config.optional_integer("sliding_window", 4096))
    layers = tuple(
        dataclasses.replace(
            layer, attention=dataclasses.replace(layer.attention, rope=ropes[WINDOWED if there else PLAIN])
        )
        for layer, there in zip(spec.layers, windowed, strict=True)
    )
    return dataclasses.replace(spec, layers=layers)


def _rotary_settings(config: ConfigReader) -> dict[str, dict[str, Any]]:
    """Rotary settings by kind of layer: nested since transformers 5; before, those of windows had a base alone."""
    nested, scaling = config.mapping("rope_parameters") or {}, config.mapping("rope_scaling")
    theta, local = config.number("rope_theta", 1e6), config.number("rope_local_base_freq", 1e4)
    if nested and not set(nested) & {PLAIN, WINDOWED}:
        nested = {PLAIN: nested}
    plain = dict(scaling or nested.get(PLAIN) or {})
    windowed = dict(nested.get(WINDOWED) or {})
    return {PLAIN: {"rope_theta": theta, **plain}, WINDOWED: {"rope_theta": local, **windowed}}


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    ropes = {
        kind: write_rope(layer.attention.rope, layer.head_dim)
        for kind in (PLAIN, WINDOWED)
        for layer in spec.layers
        if layer.attention.rope is not None and (layer.attention.window is None) == (kind == PLAIN)
    }
    return {**gemma2.write(spec), "rope_parameters": ropes}


def _more(fields: GGUFFields, config: dict[str, Any]) -> dict[str, Any]:
    """What a GGUF file says of windows, of their rotary base and of the cap; a scaling is that of other layers."""
    window = fields.window()
    local = {"rope_type": "default", "rope_theta": fields.number("rope.freq_base_swa", 1e4)}
    return {
        "final_logit_softcapping": fields.number("final_logit_softcapping", 0.0) or None,
        "sliding_window": window,
        "layer_types": fields.layer_types(every=1 if window is None else 6),
        "query_pre_attn_scalar": gemma2.score_scalar(config, largest=62),
        "rope_parameters": {PLAIN: config["rope_parameters"], WINDOWED: local},
    }


def _own(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `_more`."""
    found = gemma2.windows(spec, every=6)
    if spec.logit_soft_cap is not None:
        found["final_logit_softcapping"] = spec.logit_soft_cap
    for attention in (layer.attention for layer in spec.layers):
        if attention.window is not None and attention.rope is not None:
            found["rope.freq_base_swa"] = attention.rope.theta
    return found


GGUF = dataclasses.replace(
    gemma2.GGUF,
    architecture="gemma3",
    family="gemma3_text",
    tensors={**gemma2.GGUF.tensors, **llama.GGUF_QK_NORMS},
    more=_more,
    own=_own,
    conversions={**gemma2.GGUF.conversions, **dict.fromkeys(llama.GGUF_QK_NORMS, LESS_ONE)},
    own_head=True,
)
FAMILY = dataclasses.replace(
    gemma2.FAMILY, model_type="gemma3_text", architecture="Gemma3ForCausalLM", read=read, write=write, gguf=GGUF
)
