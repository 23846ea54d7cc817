"""Gemma (``model_type: gemma``): Llama with scaled embeddings, norms that store weight - 1, and tanh-GELU."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import LESS_ONE
from sentinel.models.families.weights import Rule, plus_one
from sentinel.models.spec import ModelSpec

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Gemma config."""
    if config.flag("use_bidirectional_attention", False, null=False):
        raise config.refuse("use_bidirectional_attention", True, "false")
    bias = config.flag("attention_bias", False)
    config.rename(hidden_activation="hidden_act")
    spec = llama.llama_like(config, defaults=DEFAULTS, attention={"qkv_bias": bias, "out_bias": bias})
    return scaled(spec)


def scaled(spec: ModelSpec) -> ModelSpec:
    """The model with embeddings times the root of its width."""
    return dataclasses.replace(spec, embed_scale=spec.n_embd**0.5)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    return {
        **llama.write_llama_like(spec),
        "attention_bias": llama.one_bias(spec, "Gemma"),
    }


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    return [*rules_without_norms(spec), *llama.rules_of_norms(spec, llama.NORMS, plus_one)]


def rules_without_norms(spec: ModelSpec) -> list[Rule]:
    """All but the norms of the layers; the norms of queries and keys store weight - 1 too."""
    found = [*llama.rules_of_ends(spec), *llama.rules_of_attention(spec), *llama.rules_of_mlp(spec)]
    ends = ("final_norm.weight", "q_norm.weight", "k_norm.weight")
    return [plus_one(r.ours[0], r.theirs[0]) if r.ours[0].endswith(ends) else r for r in found]


GGUF = dataclasses.replace(
    llama.GGUF_HALVES,
    architecture="gemma",
    family="gemma",
    conversions=dict.fromkeys(("output_norm", "attn_norm", "ffn_norm"), LESS_ONE),
    own_head=False,
)
FAMILY = dataclasses.replace(
    llama.FAMILY, model_type="gemma", architecture="GemmaForCausalLM", read=read, write=write, rules=rules, gguf=GGUF
)
