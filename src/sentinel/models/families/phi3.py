"""Phi-3 and 4 (``model_type: phi3``): Llama with fused projections, partial rotary positions and a window."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import GGUFFields, in_layers
from sentinel.models.families.weights import Rule, same, stacked, stacked_qkv
from sentinel.models.spec import ModelSpec

DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Phi-3 config."""
    window = config.optional_integer("sliding_window")
    config.ignore("resid_pdrop", "embd_pdrop")
    config.default("original_max_position_embeddings", 4096)  # beside the rotary settings, where it wins
    return llama.llama_like(config, defaults=DEFAULTS, attention={"window": window})


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    found: dict[str, Any] = {**llama.write_llama_like(spec), "sliding_window": spec.layers[0].attention.window}
    original = found["rope_parameters"].get("original_max_position_embeddings")
    return {**found, "pad_token_id": None, "original_max_position_embeddings": original or spec.max_seq_len}


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    block = "model.layers.{i}"
    return [
        *llama.rules_of_ends(spec),
        *llama.rules_of_norms(spec, llama.NORMS),
        stacked_qkv("layers.{i}.attn.qkv_proj.weight", f"{block}.self_attn.qkv_proj.weight"),
        same("layers.{i}.attn.out_proj.weight", f"{block}.self_attn.o_proj.weight"),
        stacked(
            ("layers.{i}.mlp.gate_proj.weight", "layers.{i}.mlp.up_proj.weight"), f"{block}.mlp.gate_up_proj.weight"
        ),
        same("layers.{i}.mlp.down_proj.weight", f"{block}.mlp.down_proj.weight"),
    ]


def _more(fields: GGUFFields, config: dict[str, Any]) -> dict[str, Any]:
    """The window of a GGUF file, and the original context, which the family keeps beside the rotary settings."""
    original = fields.count("rope.scaling.original_context_length", config["max_position_embeddings"])
    return {"sliding_window": fields.window(), "original_max_position_embeddings": original}


def _own(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `_more`, but for a window within the context, which llama.cpp does not follow in this architecture."""
    window = spec.layers[0].attention.window
    return {} if window is None or window < spec.max_seq_len else {"attention.sliding_window": window}


GGUF = dataclasses.replace(
    llama.GGUF_HALVES,
    architecture="phi3",
    family="phi3",
    tensors={
        **{kind: llama.GGUF.tensors[kind] for kind in ("token_embd", "output_norm", "output", "attn_norm", "ffn_norm")},
        **in_layers(
            "model.layers.{i}",
            attn_qkv="self_attn.qkv_proj",
            attn_output="self_attn.o_proj",
            ffn_up="mlp.gate_up_proj",
            ffn_down="mlp.down_proj",
        ),
    },
    rotary="part",
    more=_more,
    own=_own,
    square=True,
)
FAMILY = dataclasses.replace(
    llama.FAMILY, model_type="phi3", architecture="Phi3ForCausalLM", read=read, write=write, rules=rules, gguf=GGUF
)
