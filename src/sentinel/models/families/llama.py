"""Llama (``model_type: llama``; SmolLM2 too): RMSNorm, rotary positions, gated SiLU MLP, grouped-query attention.

Many families are Llama but for a few features: they take its functions from here and change what they return.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sentinel.errors import InputError
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import EVERY_PROJECTION, PAIRS, QKV, GGUFLayout, in_layers
from sentinel.models.families.rope import read_rope, write_rope
from sentinel.models.families.weights import Rule, Stored, same, separate_qkv
from sentinel.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

EMBEDDING = "model.embed_tokens.weight"
BIASES = {
    "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
}
GGUF = GGUFLayout(
    "llama",
    "llama",
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        **in_layers(
            "model.layers.{i}",
            attn_norm="input_layernorm",
            ffn_norm="post_attention_layernorm",
            attn_q="self_attn.q_proj",
            attn_k="self_attn.k_proj",
            attn_v="self_attn.v_proj",
            attn_output="self_attn.o_proj",
            ffn_gate="mlp.gate_proj",
            ffn_up="mlp.up_proj",
            ffn_down="mlp.down_proj",
        ),
    },
    biases=BIASES,
    conversions={"attn_q": PAIRS, "attn_k": PAIRS},
    bias_kinds=EVERY_PROJECTION,
)
GGUF_QK_NORMS = in_layers("model.layers.{i}", attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")
# Families whose queries and keys llama.cpp turns as Hugging Face does.
GGUF_HALVES = dataclasses.replace(GGUF, conversions={}, biases={}, bias_kinds=QKV)


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face Llama config."""
    attention_bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    config.ignore("pretraining_tp", "is_llama_config")  # notes of older exports, without effect on the function
    return llama_like(
        config,
        attention={"qkv_bias": attention_bias, "out_bias": attention_bias},
        mlp={"up_bias": mlp_bias, "down_bias": mlp_bias},
    )


# What a config leaves out, by Hugging Face's names.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as query heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "tie_word_embeddings": False,
}


def llama_like(
    config: ConfigReader,
    *,
    defaults: Mapping[str, Any] | None = None,
    attention: Mapping[str, Any] | None = None,
    mlp: Mapping[str, Any] | None = None,
    **model: Any,
) -> ModelSpec:
    """The specification of a config with Llama's names of fields.

    ``defaults`` are the family's where they are not Llama's; ``attention``, ``mlp`` and ``model`` further fields of the
    parts and of the model.
    """
    name, default = config.family, {**DEFAULTS, **(defaults or {})}
    sizes = {size: config.integer(size, default[size]) for size in SIZES}
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head_dim = config.optional_integer("head_dim") or default["head_dim"] or width // heads
    if width % heads and head_dim == width // heads:
        raise InputError(f"{name} config: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    context = sizes["max_position_embeddings"]
    rope = read_rope(config, context, head_dim, theta=default["rope_theta"], partial=default["partial_rotary_factor"])
    kv_heads = config.optional_integer("num_key_value_heads", default["num_key_value_heads"]) or heads
    activation = config.activation("hidden_act", default["hidden_act"])
    of_attention: dict[str, Any] = {"rope": rope, **(attention or {})}
    of_mlp: dict[str, Any] = {"gated": True, **(mlp or {})}
    layer = LayerSpec(
        AttentionSpec(heads, kv_heads, head_dim, **of_attention),
        MlpSpec(sizes["intermediate_size"], activation, **of_mlp),
    )
    config.ignore("attention_dropout", "initializer_range")  # of training from scratch only
    if "norm" not in model:
        model["norm"] = NormSpec("rmsnorm", config.number("rms_norm_eps", default["rms_norm_eps"]))
    return ModelSpec(
        family=name,
        vocab_size=sizes["vocab_size"],
        n_embd=width,
        max_seq_len=context,
        layers=(layer,) * sizes["num_hidden_layers"],
        tied_head=config.flag("tie_word_embeddings", default["tie_word_embeddings"]),
        **model,
    )


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    mlp = spec.layers[0].mlp
    bias = one_bias(spec, "Llama")
    if mlp.down_bias != mlp.up_bias:
        raise InputError("Hugging Face's Llama has no bias on single projections; keep this model in sentinel's format")
    return {**write_llama_like(spec), "attention_bias": bias, "mlp_bias": mlp.up_bias}


def one_bias(spec: ModelSpec, name: str) -> bool:
    """Whether the attention's projections have biases: all or none; `InputError` that names the family otherwise."""
    attention = spec.layers[0].attention
    if attention.out_bias != attention.qkv_bias:
        raise InputError(
            f"Hugging Face's {name} has no bias on single projections; keep this model in sentinel's format"
        )
    return attention.qkv_bias


def write_llama_like(spec: ModelSpec, eps: str = "rms_norm_eps") -> dict[str, Any]:
    """Inverse of `llama_like`, without what the family adds; ``eps`` is the name of that field."""
    layer = spec.layers[0]
    found: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.n_embd,
        "num_attention_heads": layer.n_head,
        "num_key_value_heads": layer.n_kv_head,
        "head_dim": layer.head_dim,
        "num_hidden_layers": spec.n_layer,
        "max_position_embeddings": spec.max_seq_len,
        "intermediate_size": layer.intermediate_size,
        eps: spec.norm.eps,
        "hidden_act": layer.mlp.activation,
        "tie_word_embeddings": spec.tied_head,
    }
    ropes = [layer.attention.rope for layer in spec.layers if layer.attention.rope is not None]
    return {**found, "rope_parameters": write_rope(ropes[0], layer.head_dim)} if ropes else found


NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    return [*rules_of_ends(spec), *rules_of_attention(spec), *rules_of_mlp(spec), *rules_of_norms(spec, NORMS)]


def rules_of_ends(spec: ModelSpec) -> list[Rule]:
    """Embedding, final norm and LM head."""
    found = [same("embed.weight", EMBEDDING)]
    parts = ("weight", "bias") if spec.norm.kind == "layernorm" else ("weight",)
    found += [same(f"final_norm.{part}", f"model.norm.{part}") for part in parts]
    if not spec.tied_head:
        found.append(same("lm_head.weight", "lm_head.weight"))
    if spec.head_bias:
        found.append(same("lm_head.bias", "lm_head.bias"))
    return found


def rules_of_norms(spec: ModelSpec, names: dict[str, str], rule: Any = same) -> list[Rule]:
    """The norms of every layer, by the names that the family has for those of `BlockSpec.norms`."""
    parts = ("weight", "bias") if spec.norm.kind == "layernorm" else ("weight",)
    return [
        rule(f"layers.{{i}}.{ours}.{part}", f"model.layers.{{i}}.{names[ours]}.{part}")
        for ours in spec.block.norms
        for part in parts
    ]


def rules_of_attention(spec: ModelSpec, out: str = "self_attn.o_proj") -> list[Rule]:
    """Separate queries, keys and values, their norms, and the output projection."""
    attention = spec.layers[0].attention
    found: list[Rule] = []
    for part in ("weight", "bias") if attention.qkv_bias else ("weight",):
        qkv = (f"model.layers.{{i}}.self_attn.{p}_proj.{part}" for p in "qkv")
        found.append(separate_qkv(f"layers.{{i}}.attn.qkv_proj.{part}", *qkv))
    if attention.qk_norm:
        names = (f"{p}_norm.weight" for p in "qk")
        found += [same(f"layers.{{i}}.attn.{name}", f"model.layers.{{i}}.self_attn.{name}") for name in names]
    return [*found, *projection("attn.out_proj", out, attention.out_bias)]


def rules_of_mlp(spec: ModelSpec) -> list[Rule]:
    """The three projections of a gated MLP."""
    mlp = spec.layers[0].mlp
    names = {"gate_proj": mlp.up_bias, "up_proj": mlp.up_bias, "down_proj": mlp.down_bias}
    return [rule for name, bias in names.items() for rule in projection(f"mlp.{name}", f"mlp.{name}", bias)]


def projection(ours: str, theirs: str, bias: bool) -> list[Rule]:
    """The weight of a projection and, if there is one, its bias, as they are."""
    parts = ("weight", "bias") if bias else ("weight",)
    return [same(f"layers.{{i}}.{ours}.{part}", f"model.layers.{{i}}.{theirs}.{part}") for part in parts]


def rename(state: Stored) -> Stored:
    """Names as Hugging Face's class has them now: older checkpoints hold rotary buffers, bare ones lack the prefix."""
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    return {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": t for name, t in kept.items()}


FAMILY = Family("llama", "LlamaForCausalLM", read, write, rules, EMBEDDING, rename, GGUF)
