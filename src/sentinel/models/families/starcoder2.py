"""StarCoder2 (``model_type: starcoder2``): Llama with LayerNorm, a plain MLP, biases and a window."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.errors import InputError
from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import EVERY_PROJECTION, GGUFFields, in_layers
from sentinel.models.families.weights import Rule
from sentinel.models.spec import ModelSpec, NormSpec

DEFAULTS = {
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face StarCoder2 config."""
    bias = config.flag("use_bias", True)
    config.ignore("residual_dropout", "embedding_dropout")
    return llama.llama_like(
        config,
        defaults=DEFAULTS,
        attention={"qkv_bias": bias, "out_bias": bias, "window": config.optional_integer("sliding_window")},
        mlp={"gated": False, "up_bias": bias, "down_bias": bias},
        norm=NormSpec("layernorm", config.number("norm_epsilon", 1e-5)),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    if len({attention.qkv_bias, attention.out_bias, mlp.up_bias, mlp.down_bias}) > 1:
        raise InputError(
            "Hugging Face's StarCoder2 has no bias on single projections; keep this model in sentinel's format"
        )
    found = llama.write_llama_like(spec, "norm_epsilon")
    del found["head_dim"]
    return {
        **found,
        "use_bias": attention.qkv_bias,
        "sliding_window": attention.window,
    }


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    bias = spec.layers[0].mlp.up_bias
    found = [*llama.rules_of_ends(spec), *llama.rules_of_attention(spec), *llama.rules_of_norms(spec, llama.NORMS)]
    found += [
        *llama.projection("mlp.up_proj", "mlp.c_fc", bias),
        *llama.projection("mlp.down_proj", "mlp.c_proj", bias),
    ]
    return found


def _more(fields: GGUFFields, _: dict[str, Any]) -> dict[str, Any]:
    """The window of a GGUF file."""
    return {"sliding_window": fields.window()}


PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
GGUF = dataclasses.replace(
    llama.GGUF_HALVES,
    architecture="starcoder2",
    family="starcoder2",
    tensors={
        **{kind: module for kind, module in llama.GGUF.tensors.items() if kind != "ffn_gate"},
        **in_layers("model.layers.{i}", ffn_up="mlp.c_fc", ffn_down="mlp.c_proj"),
    },
    eps=("attention.layer_norm_epsilon", "norm_epsilon"),
    biases={"use_bias": PROJECTIONS},
    more=_more,
    bias_kinds=EVERY_PROJECTION,
    needs=("attn_output.bias", "ffn_up.bias", "ffn_down.bias"),
    square=True,
)
FAMILY = Family("starcoder2", "Starcoder2ForCausalLM", read, write, rules, llama.EMBEDDING, llama.rename, GGUF)
