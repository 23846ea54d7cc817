"""Tiny models that are written as GGUF files: one of every family that llama.cpp has, and those whose layers differ."""

from __future__ import annotations

import dataclasses
from typing import Any

from conftest import CONFIGS, spec_of
from family_configs import spec_named
from helpers import layer_of

from sentinel.models.spec import LayerSpec, ModelSpec, NormSpec, RopeSpec

# Fields of the attention without which llama.cpp's architecture of the family does not hold a tiny config.
CHANGED: dict[str, dict[str, Any]] = {name: {"window": None} for name in ("mistral-window", "phi3", "starcoder2")}
# Tiny configs that it holds.
FAMILIES = (
    *(name for name in CONFIGS if name not in ("gpt2-relu-untied", "gpt2-gelu")),
    *("llama-yarn", "llama-dynamic", "llama-longrope", "mistral", "qwen2", "qwen3", "smollm3", "phi3-longrope"),
    *("phi3-partial", "granite", "olmo2", "gemma", "gpt_neox", "gpt_neox-sequential", "phi", "stablelm"),
    *("stablelm-parallel", "gpt_bigcode", "gemma2", "gemma3", "gemma3-scaled"),
    *CHANGED,
)


def of_family(name: str) -> ModelSpec:
    spec = spec_of(name) if name in CONFIGS else spec_named(name)
    layers = (
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, **CHANGED.get(name, {})))
        for layer in spec.layers
    )
    return dataclasses.replace(spec, layers=tuple(layers))


ROPE = RopeSpec(10000.0)
QKV, OUT, UP, DOWN = ({f"{name}_bias": True} for name in ("qkv", "out", "up", "down"))
ALL = {**QKV, **OUT, **UP, **DOWN}


def layer(n_head: int, n_kv_head: int, neurons: int, **features: Any) -> LayerSpec:
    return layer_of(n_head, n_kv_head, 16, neurons, **{"rope": ROPE, "gated": True, **features})


def model(*layers: LayerSpec, **fields: Any) -> ModelSpec:
    made = {"norm": NormSpec("rmsnorm", 1e-5), "tied_head": True, **fields}
    return ModelSpec("llama", 320, 64, 128, layers, **made)


FULL = layer(4, 2, 96)
# By what differs.
UNEQUAL = {
    "heads": model(FULL, layer(2, 1, 96), layer(6, 3, 96)),
    "groups of several sizes": model(FULL, layer(3, 1, 96), layer(2, 2, 96)),
    "neurons": model(FULL, layer(4, 2, 7), layer(4, 2, 33), tied_head=False),
    "no heads": model(FULL, layer(0, 0, 96), FULL),
    "no heads, but their bias": model(FULL, layer(0, 0, 40, **ALL), layer(0, 0, 50, **OUT), FULL),
    "no heads in the first layer": model(layer(0, 0, 96), FULL),
    "no heads in the first layer, but biases": model(layer(0, 0, 96, **ALL), FULL),
    "no heads in the last layer": model(FULL, layer(0, 0, 96, **OUT)),
    "no neurons": model(FULL, layer(4, 2, 0), FULL),
    "no neurons, but biases": model(layer(4, 2, 0, **ALL), FULL, layer(2, 1, 0, **DOWN)),
    "nothing": model(FULL, layer(0, 0, 0), FULL, layer(0, 0, 0, **OUT, **DOWN)),
    "nothing in the first layer": model(layer(0, 0, 0, **OUT, **DOWN), FULL),
    "biases of outputs": model(layer(4, 2, 96, **OUT, **DOWN), layer(2, 1, 64, **OUT, **DOWN)),
    "biases in some layers only": model(FULL, layer(2, 1, 96, **ALL), layer(4, 2, 96, **QKV), layer(4, 2, 64, **UP)),
    "llama3": model(
        *(layer(heads, 1, 96, rope=RopeSpec(1e4, "llama3", factor=8.0, original_max_seq_len=32)) for heads in (2, 4))
    ),
    "scales": model(layer(4, 2, 96, scale=0.1, **QKV), layer(2, 1, 96, scale=0.1), embed_scale=3.0, logit_scale=0.5),
}
