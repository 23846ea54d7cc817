"""Granite 3 (``model_type: granite``): Llama with multipliers of embeddings, scores, residuals and logits."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import GGUFFields
from sentinel.models.spec import BlockSpec, ModelSpec


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Granite config."""
    attention_bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return llama.llama_like(
        config,
        attention={
            "qkv_bias": attention_bias,
            "out_bias": attention_bias,
            "scale": config.number("attention_multiplier", 1.0),
        },
        mlp={"up_bias": mlp_bias, "down_bias": mlp_bias},
        block=BlockSpec(residual_scale=config.number("residual_multiplier", 1.0)),
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / (config.number("logits_scaling", 1.0) or 1.0),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    return {
        **llama.write(spec),
        "attention_multiplier": spec.layers[0].attention.score_scale,
        "residual_multiplier": spec.block.residual_scale,
        "embedding_multiplier": spec.embed_scale,
        "logits_scaling": 1 / spec.logit_scale,
    }


def _multipliers(fields: GGUFFields, config: dict[str, Any]) -> dict[str, Any]:
    """The multipliers of a GGUF file, in which that of the scores is 1 / sqrt(head_dim) by default."""
    fields.only("rope.scaling.finetuned", True)  # false is a model without positions
    return {
        "attention_multiplier": fields.number("attention.scale", 0.0) or config["head_dim"] ** -0.5,
        "residual_multiplier": fields.number("residual_scale", 1.0),
        "embedding_multiplier": fields.number("embedding_scale", 1.0),
        "logits_scaling": fields.number("logit_scale"),
    }


def _own(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `_multipliers`."""
    return {
        "attention.scale": spec.layers[0].attention.score_scale,
        "residual_scale": spec.block.residual_scale,
        "embedding_scale": spec.embed_scale,
        "logit_scale": 1 / spec.logit_scale,
    }


FAMILY = dataclasses.replace(
    llama.FAMILY,
    model_type="granite",
    architecture="GraniteForCausalLM",
    read=read,
    write=write,
    gguf=dataclasses.replace(llama.GGUF, architecture="granite", family="granite", more=_multipliers, own=_own),
)
