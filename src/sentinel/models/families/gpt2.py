"""GPT-2 (``model_type: gpt2``): LayerNorm, learned positions, GELU MLP, biases, tied head, weights stored [in, out]."""

from __future__ import annotations

from typing import Any

from sentinel.errors import InputError
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import EVERY_PROJECTION, IN_OUT, GGUFLayout, in_layers
from sentinel.models.families.weights import Rule, Stored, same, stacked_qkv, transposed
from sentinel.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

EMBEDDING = "transformer.wte.weight"


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face GPT-2 config."""
    config.rename(hidden_size="n_embd", num_attention_heads="n_head", num_hidden_layers="n_layer")
    config.rename(max_position_embeddings="n_positions")
    width, heads = config.integer("n_embd", 768), config.integer("n_head", 12)
    if width % heads:
        raise InputError(f"gpt2 config: n_embd {width} is not a multiple of n_head {heads}")
    inner = config.optional_integer("n_inner") or 4 * width
    activation = config.activation("activation_function", "gelu_new")
    layer = LayerSpec(
        AttentionSpec(heads, heads, width // heads, qkv_bias=True, out_bias=True),
        MlpSpec(inner, activation, up_bias=True, down_bias=True),
    )
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.ignore("n_ctx", "reorder_and_upcast_attn")  # an older name of n_positions; fp32 is never down-cast here
    config.ignore("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range")  # of training from scratch only
    config.ignore(*(f"summary_{f}" for f in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")))
    return ModelSpec(
        family="gpt2",
        vocab_size=config.integer("vocab_size", 50257),
        n_embd=width,
        max_seq_len=config.integer("n_positions", 1024),
        layers=(layer,) * config.integer("n_layer", 12),
        norm=NormSpec("layernorm", config.number("layer_norm_epsilon", 1e-5)),
        learned_positions=True,
        tied_head=config.flag("tie_word_embeddings", True),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    layer = spec.layers[0]
    return {
        "vocab_size": spec.vocab_size,
        "n_embd": spec.n_embd,
        "n_head": layer.n_head,
        "n_layer": spec.n_layer,
        "n_positions": spec.max_seq_len,
        "n_inner": layer.intermediate_size,
        "layer_norm_epsilon": spec.norm.eps,
        "activation_function": layer.mlp.activation,
        "tie_word_embeddings": spec.tied_head,
    }


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the family's checkpoint."""
    found = [
        same("embed.weight", EMBEDDING),
        same("positions.weight", "transformer.wpe.weight"),
        stacked_qkv("layers.{i}.attn.qkv_proj.weight", "transformer.h.{i}.attn.c_attn.weight", transpose=True),
        stacked_qkv("layers.{i}.attn.qkv_proj.bias", "transformer.h.{i}.attn.c_attn.bias"),
    ]
    for ours, theirs in (
        ("attn.out_proj", "attn.c_proj"),
        ("mlp.up_proj", "mlp.c_fc"),
        ("mlp.down_proj", "mlp.c_proj"),
    ):
        found.append(transposed(f"layers.{{i}}.{ours}.weight", f"transformer.h.{{i}}.{theirs}.weight"))
        found.append(same(f"layers.{{i}}.{ours}.bias", f"transformer.h.{{i}}.{theirs}.bias"))
    for part in ("weight", "bias"):
        found.append(same(f"layers.{{i}}.attn_norm.{part}", f"transformer.h.{{i}}.ln_1.{part}"))
        found.append(same(f"layers.{{i}}.mlp_norm.{part}", f"transformer.h.{{i}}.ln_2.{part}"))
        found.append(same(f"final_norm.{part}", f"transformer.ln_f.{part}"))
    if not spec.tied_head:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def rename(state: Stored) -> Stored:
    """Names as Hugging Face's class has them now: older checkpoints lack the prefix and hold causal-mask buffers."""
    buffers = (".attn.bias", ".attn.masked_bias")
    out: Stored = {}
    for name, tensor in state.items():
        if not name.endswith(buffers):
            prefixed = name.startswith(("transformer.", "lm_head."))
            out[name if prefixed else f"transformer.{name}"] = tensor
    return out


GGUF = GGUFLayout(
    "gpt2",
    "gpt2",
    {
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        **in_layers(
            "transformer.h.{i}",
            attn_norm="ln_1",
            ffn_norm="ln_2",
            attn_qkv="attn.c_attn",
            attn_output="attn.c_proj",
            ffn_up="mlp.c_fc",
            ffn_down="mlp.c_proj",
        ),
    },
    sizes={
        "block_count": "n_layer",
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
    },
    eps=("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    rotary=None,
    conversions=dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), IN_OUT),
    bias_kinds=EVERY_PROJECTION,
    needs=("attn_qkv.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"),
    square=True,
)
FAMILY = Family("gpt2", "GPT2LMHeadModel", read, write, rules, EMBEDDING, rename, GGUF)
