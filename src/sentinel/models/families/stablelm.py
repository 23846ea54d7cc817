"""StableLM (``model_type: stablelm``): Llama with LayerNorm, partial rotary positions and, in some, parallel halves."""

from __future__ import annotations

import dataclasses
from typing import Any

from sentinel.errors import InputError
from sentinel.models.families import llama
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import GGUFFields
from sentinel.models.spec import BlockSpec, ModelSpec, NormSpec

DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "partial_rotary_factor": 0.25,
}


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face StableLM config."""
    config.only("qk_layernorm", False)
    parallel = config.flag("use_parallel_residual", False)
    return llama.llama_like(
        config,
        defaults=DEFAULTS,
        attention={"qkv_bias": config.flag("use_qkv_bias", False)},
        norm=NormSpec("layernorm", config.number("layer_norm_eps", 1e-5)),
        block=BlockSpec(parallel=parallel, shared_norm=parallel),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    if attention.out_bias or mlp.up_bias or mlp.down_bias:
        raise InputError("Hugging Face's StableLM has no bias of its outputs; keep this model in sentinel's format")
    found = llama.write_llama_like(spec, "layer_norm_eps")
    found["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    return {
        **found,
        "use_qkv_bias": attention.qkv_bias,
        "use_parallel_residual": spec.block.parallel,
    }


def _more(fields: GGUFFields, _: dict[str, Any]) -> dict[str, Any]:
    """As in llama.cpp, halves are parallel where the MLP has no norm of its own, whatever the field says."""
    fields.get("use_parallel_residual", False)
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in fields.tensors}


def _own(spec: ModelSpec) -> dict[str, Any]:
    """What the field says of it nevertheless."""
    return {"use_parallel_residual": spec.block.parallel}


GGUF = dataclasses.replace(
    llama.GGUF_HALVES,
    architecture="stablelm",
    family="stablelm",
    eps=("attention.layer_norm_epsilon", "layer_norm_eps"),
    biases={"use_qkv_bias": ("attn_q", "attn_k", "attn_v")},
    rotary="part",
    more=_more,
    own=_own,
    needs=("output.weight",),
    square=True,
)
FAMILY = Family("stablelm", "StableLmForCausalLM", read, write, llama.rules, llama.EMBEDDING, llama.rename, GGUF)
