"""Mistral (``model_type: mistral``): Llama with a window."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.spec import ModelSpec

DEFAULTS = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "intermediate_size": 14336}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Mistral config."""
    window = config.optional_integer("sliding_window", 4096)
    return llama.llama_like(config, defaults=DEFAULTS, attention={"window": window})


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    return {**llama.write_llama_like(spec), "sliding_window": spec.layers[0].attention.window}


FAMILY = dataclasses.replace(
    llama.FAMILY, model_type="mistral", architecture="MistralForCausalLM", read=read, write=write
)
