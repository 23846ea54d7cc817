"""OPT (``model_type: opt``): GPT-2 with ReLU and a table of positions that begins two rows later."""

from __future__ import annotations

from typing import Any

from sentinel.errors import InputError
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.weights import Rule, Stored, after_rows, same, separate_qkv
from sentinel.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

EMBEDDING = "model.decoder.embed_tokens.weight"
OFFSET = 2  # rows of the table of positions that nobody looks up
LAYER = "model.decoder.layers.{i}"


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face OPT config. Norms after the halves (OPT-350m) are refused by name."""
    width, heads = config.integer("hidden_size", 768), config.integer("num_attention_heads", 12)
    if width % heads:
        raise InputError(f"opt config: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    config.only("do_layer_norm_before", True)
    config.only("_remove_final_layer_norm", False)
    config.only("layer_norm_elementwise_affine", True)
    config.default("word_embed_proj_dim", width)
    config.only("word_embed_proj_dim", width)
    bias = config.flag("enable_bias", True)
    config.ignore("attention_dropout", "activation_dropout", "init_std", "layerdrop")  # of training only
    activation = config.activation("activation_function", "relu")
    layer = LayerSpec(
        AttentionSpec(heads, heads, width // heads, qkv_bias=bias, out_bias=bias),
        MlpSpec(config.integer("ffn_dim", 3072), activation, up_bias=bias, down_bias=bias),
    )
    return ModelSpec(
        family="opt",
        vocab_size=config.integer("vocab_size", 50272),
        n_embd=width,
        max_seq_len=config.integer("max_position_embeddings", 2048),
        layers=(layer,) * config.integer("num_hidden_layers", 12),
        norm=NormSpec("layernorm", 1e-5),
        learned_positions=True,
        tied_head=config.flag("tie_word_embeddings", True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    layer = spec.layers[0]
    if len({layer.attention.qkv_bias, layer.attention.out_bias, layer.mlp.up_bias, layer.mlp.down_bias}) > 1:
        raise InputError("Hugging Face's OPT has no bias on single projections; keep this model in sentinel's format")
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.n_embd,
        "word_embed_proj_dim": spec.n_embd,
        "num_attention_heads": layer.n_head,
        "num_hidden_layers": spec.n_layer,
        "max_position_embeddings": spec.max_seq_len,
        "ffn_dim": layer.intermediate_size,
        "activation_function": layer.mlp.activation,
        "enable_bias": layer.attention.qkv_bias,
        "tie_word_embeddings": spec.tied_head,
    }


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    found = [
        same("embed.weight", EMBEDDING),
        after_rows(OFFSET, "positions.weight", "model.decoder.embed_positions.weight"),
    ]
    for part in ("weight", "bias") if spec.layers[0].attention.qkv_bias else ("weight",):
        qkv = (f"{LAYER}.self_attn.{p}_proj.{part}" for p in "qkv")
        found.append(separate_qkv(f"layers.{{i}}.attn.qkv_proj.{part}", *qkv))
        for ours, theirs in (("attn.out_proj", "self_attn.out_proj"), ("mlp.up_proj", "fc1"), ("mlp.down_proj", "fc2")):
            found.append(same(f"layers.{{i}}.{ours}.{part}", f"{LAYER}.{theirs}.{part}"))
    for part in ("weight", "bias"):
        found.append(same(f"layers.{{i}}.attn_norm.{part}", f"{LAYER}.self_attn_layer_norm.{part}"))
        found.append(same(f"layers.{{i}}.mlp_norm.{part}", f"{LAYER}.final_layer_norm.{part}"))
        found.append(same(f"final_norm.{part}", f"model.decoder.final_layer_norm.{part}"))
    if not spec.tied_head:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def rename(state: Stored) -> Stored:
    """Names as Hugging Face's class has them now: bare checkpoints lack the prefix."""
    return {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": t for name, t in state.items()}


FAMILY = Family("opt", "OPTForCausalLM", read, write, rules, EMBEDDING, rename)
