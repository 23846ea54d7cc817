"""SmolLM3 (``model_type: smollm3``): Llama whose every fourth layer has no rotary positions."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import QKV
from sentinel.models.families.windows import window_fields, with_windows
from sentinel.models.spec import ModelSpec

DEFAULTS = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2000000.0,
    "tie_word_embeddings": True,
}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face SmolLM3 config."""
    attention_bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    spec = llama.llama_like(
        config,
        defaults=DEFAULTS,
        attention={"qkv_bias": attention_bias, "out_bias": attention_bias},
        mlp={"up_bias": mlp_bias, "down_bias": mlp_bias},
    )
    every = config.integer("no_rope_layer_interval", 4)
    rotary = config.numbers("no_rope_layers")  # 1 for a layer with rotary positions
    turned = [bool(r) for r in rotary] if rotary else [(i + 1) % every != 0 for i in range(spec.n_layer)]
    layers = tuple(
        layer if there else dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, rope=None))
        for layer, there in zip(spec.layers, config.one_each("no_rope_layers", turned, spec.n_layer), strict=True)
    )
    spec = dataclasses.replace(spec, layers=layers)
    wanted, window = config.flag("use_sliding_window", False), config.optional_integer("sliding_window")
    windowed = config.layer_types(spec.n_layer, lambda i: wanted and window is not None and not turned[i])
    return with_windows(spec, windowed, window if wanted else None)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    rotary = [int(layer.attention.rope is not None) for layer in spec.layers]
    return {**llama.write(spec), **window_fields(spec), "no_rope_layers": rotary}


FAMILY = dataclasses.replace(
    llama.FAMILY,
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    read=read,
    write=write,
    gguf=dataclasses.replace(llama.GGUF, architecture="smollm3", family="smollm3", bias_kinds=QKV),
)
