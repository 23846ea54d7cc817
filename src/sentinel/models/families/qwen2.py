"""Qwen2 and 2.5 (``model_type: qwen2``): Llama with a bias of queries, keys and values, and windows in later layers."""

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
}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Qwen2 config."""
    spec = llama.llama_like(config, defaults=DEFAULTS, attention={"qkv_bias": True})
    return with_later_windows(config, spec)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    return {**llama.write_llama_like(spec), **window_fields(spec)}


FAMILY = dataclasses.replace(
    llama.FAMILY,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read=read,
    write=write,
    gguf=dataclasses.replace(llama.GGUF_HALVES, architecture="qwen2", family="qwen2", square=True),
)
