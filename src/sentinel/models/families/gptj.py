"""GPT-J (``model_type: gptj``): parallel halves that share a norm, rotary positions of neighbouring numbers, a head with a
bias."""

from __future__ import annotations

from typing import Any

from sentinel.errors import InputError
from sentinel.models.families import gpt2
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.weights import Rule, same, separate_qkv
from sentinel.models.spec import AttentionSpec, BlockSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec

LAYER = "transformer.h.{i}"


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face GPT-J config."""
    config.rename(hidden_size="n_embd", num_attention_heads="n_head", num_hidden_layers="n_layer")
    config.rename(max_position_embeddings="n_positions")
    width, heads = config.integer("n_embd", 4096), config.integer("n_head", 16)
    if width % heads:
        raise InputError(f"gptj config: n_embd {width} is not a multiple of n_head {heads}")
    rope = RopeSpec(10000.0, dim=config.optional_integer("rotary_dim", 64) or width)
    inner = config.optional_integer("n_inner") or 4 * width
    activation = config.activation("activation_function", "gelu_new")
    layer = LayerSpec(
        AttentionSpec(heads, heads, width // heads, rope=rope), MlpSpec(inner, activation, up_bias=True, down_bias=True)
    )
    config.only("scale_attn_weights", True)
    config.ignore("rotary", "n_ctx", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range")
    config.ignore(*(f"summary_{f}" for f in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")))
    return ModelSpec(
        family="gptj",
        vocab_size=config.integer("vocab_size", 50400),
        n_embd=width,
        max_seq_len=config.integer("n_positions", 2048),
        layers=(layer,) * config.integer("n_layer", 28),
        norm=NormSpec("layernorm", config.number("layer_norm_epsilon", 1e-5)),
        tied_head=config.flag("tie_word_embeddings", False),
        head_bias=True,
        block=BlockSpec(parallel=True, shared_norm=True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    rope = spec.layers[0].attention.rope
    assert rope is not None
    if spec.layers[0].attention.out_bias:
        raise InputError(
            "Hugging Face's GPT-J has no bias of the attention output; keep this model in sentinel's format"
        )
    return {**gpt2.write(spec), "rotary_dim": rope.dim_of(spec.layers[0].head_dim)}


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint."""
    rope = spec.layers[0].attention.rope
    assert rope is not None
    qkv = (f"{LAYER}.attn.{p}_proj.weight" for p in "qkv")
    found = [
        same("embed.weight", gpt2.EMBEDDING),
        separate_qkv("layers.{i}.attn.qkv_proj.weight", *qkv, pairs=rope.dim_of(spec.layers[0].head_dim) // 2),
        same("layers.{i}.attn.out_proj.weight", f"{LAYER}.attn.out_proj.weight"),
    ]
    for part in ("weight", "bias"):
        found.append(same(f"layers.{{i}}.attn_norm.{part}", f"{LAYER}.ln_1.{part}"))
        found.append(same(f"layers.{{i}}.mlp.up_proj.{part}", f"{LAYER}.mlp.fc_in.{part}"))
        found.append(same(f"layers.{{i}}.mlp.down_proj.{part}", f"{LAYER}.mlp.fc_out.{part}"))
        found.append(same(f"final_norm.{part}", f"transformer.ln_f.{part}"))
        found.append(same(f"lm_head.{part}", f"lm_head.{part}"))
    return found


FAMILY = Family("gptj", "GPTJForCausalLM", read, write, rules, gpt2.EMBEDDING, gpt2.rename)
