"""Qwen3 (``model_type: qwen3``): Llama with norms of queries and keys, and windows in later layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.windows import window_fields, with_later_windows
from sentinel.models.spec import ModelSpec

DEFAULTS = {
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "head_dim": 128,
}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Qwen3 config."""
    bias = config.flag("attention_bias", False)
    attention = {"qk_norm": "head", "qkv_bias": bias, "out_bias": bias}
    spec = llama.llama_like(config, defaults=DEFAULTS, attention=attention)
    return with_later_windows(config, spec)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    bias = llama.one_bias(spec, "Qwen3")
    return {**llama.write_llama_like(spec), **window_fields(spec), "attention_bias": bias}


GGUF = dataclasses.replace(
    llama.GGUF_HALVES,
    architecture="qwen3",
    family="qwen3",
    tensors={**llama.GGUF.tensors, **llama.GGUF_QK_NORMS},
    biases={"attention_bias": llama.BIASES["attention_bias"]},
)
FAMILY = dataclasses.replace(
    llama.FAMILY, model_type="qwen3", architecture="Qwen3ForCausalLM", read=read, write=write, gguf=GGUF
)
