"""Phi 1 to 2 (``model_type: phi``): parallel halves that share a LayerNorm, partial rotary positions, biases everywhere."""

from __future__ import annotations

from typing import Any

from sentinel.errors import InputError
from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import EVERY_PROJECTION, GGUFLayout, in_layers
from sentinel.models.families.weights import Rule, same
from sentinel.models.spec import BlockSpec, ModelSpec, NormSpec

DEFAULTS = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "hidden_act": "gelu_new",
    "partial_rotary_factor": 0.5,
}
BIASES = {"qkv_bias": True, "out_bias": True}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Phi config."""
    config.only("qk_layernorm", False)
    config.ignore("resid_pdrop", "embd_pdrop")
    return llama.llama_like(
        config,
        defaults=DEFAULTS,
        attention=BIASES,
        mlp={"gated": False, "up_bias": True, "down_bias": True},
        norm=NormSpec("layernorm", config.number("layer_norm_eps", 1e-5)),
        block=BlockSpec(parallel=True, shared_norm=True),
        head_bias=True,
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    if not (attention.qkv_bias and attention.out_bias and mlp.up_bias and mlp.down_bias):
        raise InputError("Hugging Face's Phi has a bias on every projection; keep this model in sentinel's format")
    found = llama.write_llama_like(spec, "layer_norm_eps")
    found["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    return found


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    found = llama.rules_of_attention(spec, out="self_attn.dense")
    found += [*llama.projection("mlp.up_proj", "mlp.fc1", True), *llama.projection("mlp.down_proj", "mlp.fc2", True)]
    found += llama.rules_of_norms(spec, {"attn_norm": "input_layernorm"})
    found.append(same("embed.weight", llama.EMBEDDING))
    for part in ("weight", "bias"):
        found.append(same(f"final_norm.{part}", f"model.final_layernorm.{part}"))
        found.append(same(f"lm_head.{part}", f"lm_head.{part}"))
    return found


GGUF = GGUFLayout(
    "phi2",
    "phi",
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.final_layernorm",
        "output": "lm_head",
        **in_layers(
            "model.layers.{i}",
            attn_norm="input_layernorm",
            attn_q="self_attn.q_proj",
            attn_k="self_attn.k_proj",
            attn_v="self_attn.v_proj",
            attn_output="self_attn.dense",
            ffn_up="mlp.fc1",
            ffn_down="mlp.fc2",
        ),
    },
    eps=("attention.layer_norm_epsilon", "layer_norm_eps"),
    rotary="part",
    bias_kinds=EVERY_PROJECTION,
    needs=("attn_output.bias", "ffn_up.bias", "ffn_down.bias", "output.weight", "output.bias"),
    square=True,
)
FAMILY = Family("phi", "PhiForCausalLM", read, write, rules, llama.EMBEDDING, llama.rename, GGUF)
