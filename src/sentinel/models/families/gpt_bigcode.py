"""GPT-BigCode (``model_type: gpt_bigcode``; StarCoder, SantaCoder): GPT-2 with one key/value head."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.models.families import gpt2
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import GGUFFields
from sentinel.models.families.weights import Rule, same, stacked_qkv
from sentinel.models.spec import ModelSpec

LAYER = "transformer.h.{i}"


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face GPT-BigCode config."""
    config.default("activation_function", "gelu_pytorch_tanh")
    config.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")  # everything is fp32 here
    config.ignore("inference_runner", "validate_runner_input", "pre_allocate_kv_cache", "max_batch_size")
    config.ignore("num_key_value_heads")  # follows from multi_query
    spec = dataclasses.replace(gpt2.read(config), family="gpt_bigcode")
    if not config.flag("multi_query", True):
        return spec
    layers = tuple(
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, n_kv_head=1)) for layer in spec.layers
    )
    return dataclasses.replace(spec, layers=layers)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    return {**gpt2.write(spec), "multi_query": spec.layers[0].n_kv_head == 1}


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint; without a shared key, the query, key and value of a head are neighbours."""
    found = [same("embed.weight", gpt2.EMBEDDING), same("positions.weight", "transformer.wpe.weight")]
    fused = stacked_qkv if spec.layers[0].n_kv_head == 1 else same
    for part in ("weight", "bias"):
        found.append(fused(f"layers.{{i}}.attn.qkv_proj.{part}", f"{LAYER}.attn.c_attn.{part}"))
        found.append(same(f"layers.{{i}}.attn.out_proj.{part}", f"{LAYER}.attn.c_proj.{part}"))
        found.append(same(f"layers.{{i}}.mlp.up_proj.{part}", f"{LAYER}.mlp.c_fc.{part}"))
        found.append(same(f"layers.{{i}}.mlp.down_proj.{part}", f"{LAYER}.mlp.c_proj.{part}"))
        found.append(same(f"layers.{{i}}.attn_norm.{part}", f"{LAYER}.ln_1.{part}"))
        found.append(same(f"layers.{{i}}.mlp_norm.{part}", f"{LAYER}.ln_2.{part}"))
        found.append(same(f"final_norm.{part}", f"transformer.ln_f.{part}"))
    if not spec.tied_head:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def _more(fields: GGUFFields, config: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp has the models with one key/value head alone."""
    fields.only("attention.head_count_kv", 1)
    return {"multi_query": True}


def _own(_: ModelSpec) -> dict[str, Any]:
    """Inverse of `_more`."""
    return {"attention.head_count_kv": 1}


# With one head for keys and values, theirs is no field of the config.
SIZES = {**gpt2.GGUF.sizes, "attention.head_count_kv": "num_key_value_heads"}
GGUF = dataclasses.replace(
    gpt2.GGUF, architecture="starcoder", family="gpt_bigcode", sizes=SIZES, more=_more, conversions={}, own=_own
)
FAMILY = Family("gpt_bigcode", "GPTBigCodeForCausalLM", read, write, rules, gpt2.EMBEDDING, gpt2.rename, GGUF)
