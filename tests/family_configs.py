"""Tiny configs of every feature of every family, and Hugging Face's models of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sentinel.models.families import family_of
from sentinel.models.spec import ModelSpec

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
NO_GROUPS = {name: value for name, value in TINY.items() if name != "num_key_value_heads"}
OPT = {name: value for name, value in NO_GROUPS.items() if name != "intermediate_size"} | {"ffn_dim": 80}
OLD: dict[str, Any] = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 2.0],
    "long_factor": [1.0, 2.0, 3.0, 8.0],
    "original_max_position_embeddings": 32,
}
GEMMA: dict[str, Any] = {**TINY, "head_dim": 8, "query_pre_attn_scalar": 24}

# By name: the family and the fields of a config.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-yarn": ("llama", {**TINY, "rope_parameters": YARN}),
    "llama-yarn-mscale": (
        "llama",
        {**TINY, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False, "beta_fast": 16}},
    ),
    "llama-dynamic": ("llama", {**TINY, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-longrope": ("llama", {**TINY, "rope_parameters": LONG}),
    "mistral": ("mistral", {**TINY, "sliding_window": None, "head_dim": 16}),
    "mistral-window": ("mistral", {**TINY, "sliding_window": 5}),
    "qwen2": ("qwen2", {**TINY, "tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {**TINY, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {**TINY, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias-window": (
        "qwen3",
        {**TINY, "head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "smollm3": ("smollm3", {**TINY, "pad_token_id": 0}),
    "smollm3-window": (
        "smollm3",
        {**TINY, "pad_token_id": 0, "no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 6}
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "phi3": ("phi3", {**TINY, "pad_token_id": 0, "sliding_window": 7}),
    "phi3-longrope": (
        "phi3",
        {**TINY, "pad_token_id": 0, "original_max_position_embeddings": 32, "rope_parameters": LONG},
    ),
    "phi3-partial": (
        "phi3",
        {**TINY, "pad_token_id": 0}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "granite": (
        "granite",
        {**TINY, "embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22}
        | {"logits_scaling": 8.0, "tie_word_embeddings": True},
    ),
    "olmo2": ("olmo2", TINY),
    "olmo2-bias": ("olmo2", {**TINY, "attention_bias": True}),
    "gemma": ("gemma", {**TINY, "head_dim": 16}),
    "gemma2": ("gemma2", {**GEMMA, "sliding_window": 5}),
    "gemma2-no-caps": ("gemma2", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("gemma3_text", {**GEMMA, "sliding_window": 5, "num_hidden_layers": 7}),
    "gemma3-scaled": (
        "gemma3_text",
        {**GEMMA, "sliding_window": 5, "final_logit_softcapping": 20.0}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "opt": ("opt", {**OPT, "word_embed_proj_dim": 48}),
    "opt-no-bias": ("opt", {**OPT, "word_embed_proj_dim": 48, "enable_bias": False}),
    "gpt_neox": ("gpt_neox", NO_GROUPS),
    "gpt_neox-sequential": ("gpt_neox", {**NO_GROUPS, "use_parallel_residual": False, "attention_bias": False}),
    "gptj": ("gptj", {**OLD, "rotary_dim": 6}),
    "phi": ("phi", TINY),
    "stablelm": ("stablelm", {**TINY, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {**TINY, "use_parallel_residual": True}),
    "gpt_bigcode": ("gpt_bigcode", OLD),
    "gpt_bigcode-multi-head": ("gpt_bigcode", {**OLD, "multi_query": False}),
    "starcoder2": ("starcoder2", {**TINY, "sliding_window": 6}),
}


def spec_named(name: str) -> ModelSpec:
    family, fields = CONFIGS[name]
    return family_of(family).spec_from_config({"model_type": family, **fields})


def hugging_face(name: str) -> Any:
    """Hugging Face's own model of that config, in which every parameter matters."""
    return hugging_face_model(*CONFIGS[name])


def hugging_face_model(family: str, fields: dict[str, Any]) -> Any:
    """Hugging Face's own model of that family and those fields, in which every parameter matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2)
    return model
