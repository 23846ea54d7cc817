"""OLMo 2 (``model_type: olmo2``): Llama with norms after the halves only, and norms of all queries and of all keys."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import in_layers
from sentinel.models.families.weights import Rule
from sentinel.models.spec import BlockSpec, ModelSpec

NORMS = {"attn_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face OLMo 2 config."""
    bias = config.flag("attention_bias", False)
    return llama.llama_like(
        config,
        defaults={"vocab_size": 50304, "rms_norm_eps": 1e-5},
        attention={"qk_norm": "whole", "qkv_bias": bias, "out_bias": bias},
        block=BlockSpec(pre_norm=False, post_norm=True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    return {**llama.write_llama_like(spec), "attention_bias": llama.one_bias(spec, "OLMo 2")}


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    rest = (*llama.rules_of_ends(spec), *llama.rules_of_attention(spec), *llama.rules_of_mlp(spec))
    return [*rest, *llama.rules_of_norms(spec, NORMS)]


GGUF = dataclasses.replace(
    llama.GGUF_HALVES,
    architecture="olmo2",
    family="olmo2",
    tensors={
        **{kind: module for kind, module in llama.GGUF.tensors.items() if kind not in ("attn_norm", "ffn_norm")},
        **llama.GGUF_QK_NORMS,
        **in_layers(
            "model.layers.{i}",
            post_attention_norm="post_attention_layernorm",
            post_ffw_norm="post_feedforward_layernorm",
        ),
    },
    biases={"attention_bias": llama.BIASES["attention_bias"]},
    needs=("output.weight",),
    square=True,
)
FAMILY = dataclasses.replace(
    llama.FAMILY, model_type="olmo2", architecture="Olmo2ForCausalLM", read=read, write=write, rules=rules, gguf=GGUF
)
