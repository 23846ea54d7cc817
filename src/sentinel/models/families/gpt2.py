"""GPT-2 (``model_type: gpt2``): LayerNorm, learned positions, GELU MLP, biases, tied head, weights stored [in, out]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentinel.errors import InputError
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.weights import Rule, State, same, stacked_qkv, transposed
from sentinel.models.spec import LayerSpec, ModelSpec

MODEL_TYPE = "gpt2"
ARCHITECTURE = "GPT2LMHeadModel"
EMBEDDING = "transformer.wte.weight"


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """Specification of a Hugging Face GPT-2 ``config.json``. Unsupported fields raise `InputError` by name."""
    read = ConfigReader(MODEL_TYPE, config)
    read.rename(hidden_size="n_embd", num_attention_heads="n_head", num_hidden_layers="n_layer")
    read.rename(max_position_embeddings="n_positions")
    width, heads = read.integer("n_embd", 768), read.integer("n_head", 12)
    if width % heads:
        raise InputError(f"gpt2 config: n_embd {width} is not a multiple of n_head {heads}")
    inner = read.optional_integer("n_inner") or 4 * width
    layer = LayerSpec(n_head=heads, n_kv_head=heads, head_dim=width // heads, intermediate_size=inner)
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=read.integer("vocab_size", 50257),
        n_embd=width,
        max_seq_len=read.integer("n_positions", 1024),
        layers=(layer,) * read.integer("n_layer", 12),
        norm="layernorm",
        norm_eps=read.number("layer_norm_epsilon", 1e-5),
        positions="learned",
        rope=None,
        activation=read.activation("activation_function", "gelu_new"),
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        up_bias=True,
        down_bias=True,
        tied_head=read.flag("tie_word_embeddings", True),
    )
    read.only("scale_attn_weights", True)
    read.only("scale_attn_by_inverse_layer_idx", False)
    read.ignore("n_ctx", "reorder_and_upcast_attn")  # an older name of n_positions; fp32 is never down-cast here
    read.ignore("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range")  # of training from scratch only
    read.ignore(*(f"summary_{f}" for f in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")))
    read.done()
    return spec


def config_from_spec(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `spec_from_config`, for models whose layers are all alike."""
    layer = spec.layers[0]
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "vocab_size": spec.vocab_size,
        "n_embd": spec.n_embd,
        "n_head": layer.n_head,
        "n_layer": spec.n_layer,
        "n_positions": spec.max_seq_len,
        "n_inner": layer.intermediate_size,
        "layer_norm_epsilon": spec.norm_eps,
        "activation_function": spec.activation,
        "tie_word_embeddings": spec.tied_head,
    }


def weight_rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the family's checkpoint."""
    rules = [
        same("embed.weight", EMBEDDING),
        same("positions.weight", "transformer.wpe.weight"),
        stacked_qkv("layers.{i}.attn.qkv_proj.weight", "transformer.h.{i}.attn.c_attn.weight", transpose=True),
        stacked_qkv("layers.{i}.attn.qkv_proj.bias", "transformer.h.{i}.attn.c_attn.bias", transpose=False),
    ]
    for ours, theirs in (
        ("attn.out_proj", "attn.c_proj"),
        ("mlp.up_proj", "mlp.c_fc"),
        ("mlp.down_proj", "mlp.c_proj"),
    ):
        rules.append(transposed(f"layers.{{i}}.{ours}.weight", f"transformer.h.{{i}}.{theirs}.weight"))
        rules.append(same(f"layers.{{i}}.{ours}.bias", f"transformer.h.{{i}}.{theirs}.bias"))
    for part in ("weight", "bias"):
        rules.append(same(f"layers.{{i}}.attn_norm.{part}", f"transformer.h.{{i}}.ln_1.{part}"))
        rules.append(same(f"layers.{{i}}.mlp_norm.{part}", f"transformer.h.{{i}}.ln_2.{part}"))
        rules.append(same(f"final_norm.{part}", f"transformer.ln_f.{part}"))
    if not spec.tied_head:
        rules.append(same("lm_head.weight", "lm_head.weight"))
    return rules


def normalise_names(state: State) -> State:
    """Names as Hugging Face's class has them now: older checkpoints lack the prefix and hold causal-mask buffers."""
    buffers: Sequence[str] = (".attn.bias", ".attn.masked_bias")
    out: State = {}
    for name, tensor in state.items():
        if not name.endswith(tuple(buffers)):
            prefixed = name.startswith(("transformer.", "lm_head."))
            out[name if prefixed else f"transformer.{name}"] = tensor
    return out
