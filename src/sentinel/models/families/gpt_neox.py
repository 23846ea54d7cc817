"""GPT-NeoX (``model_type: gpt_neox``; Pythia too): parallel halves with a LayerNorm each, partial rotary positions."""

from __future__ import annotations

from typing import Any

from sentinel.errors import InputError
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import BY_HEAD, EVERY_PROJECTION, SIZES, GGUFLayout, in_layers
from sentinel.models.families.rope import read_rope, write_rope
from sentinel.models.families.weights import Rule, Stored, same
from sentinel.models.spec import AttentionSpec, BlockSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

EMBEDDING = "gpt_neox.embed_in.weight"
LAYER = "gpt_neox.layers.{i}"


def read(config: ConfigReader) -> ModelSpec:
    """Specification of a Hugging Face GPT-NeoX config."""
    width, heads = config.integer("hidden_size", 6144), config.integer("num_attention_heads", 64)
    if width % heads:
        raise InputError(f"gpt_neox config: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    config.rename(rotary_pct="partial_rotary_factor", rotary_emb_base="rope_theta")
    context = config.integer("max_position_embeddings", 2048)
    rope = read_rope(config, context, width // heads, partial=0.25)
    bias = config.flag("attention_bias", True)
    config.ignore("attention_dropout", "initializer_range")  # of training from scratch only
    layer = LayerSpec(
        AttentionSpec(heads, heads, width // heads, rope=rope, qkv_bias=bias, out_bias=bias),
        MlpSpec(
            config.integer("intermediate_size", 24576),
            config.activation("hidden_act", "gelu"),
            up_bias=True,
            down_bias=True,
        ),
    )
    return ModelSpec(
        family="gpt_neox",
        vocab_size=config.integer("vocab_size", 50432),
        n_embd=width,
        max_seq_len=context,
        layers=(layer,) * config.integer("num_hidden_layers", 44),
        norm=NormSpec("layernorm", config.number("layer_norm_eps", 1e-5)),
        tied_head=config.flag("tie_word_embeddings", False),
        block=BlockSpec(parallel=config.flag("use_parallel_residual", True)),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `read`."""
    layer = spec.layers[0]
    assert layer.attention.rope is not None
    if layer.attention.qkv_bias != layer.attention.out_bias or not (layer.mlp.up_bias and layer.mlp.down_bias):
        raise InputError(
            "Hugging Face's GPT-NeoX has no bias on single projections; keep this model in sentinel's format"
        )
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.n_embd,
        "num_attention_heads": layer.n_head,
        "num_hidden_layers": spec.n_layer,
        "max_position_embeddings": spec.max_seq_len,
        "intermediate_size": layer.intermediate_size,
        "layer_norm_eps": spec.norm.eps,
        "hidden_act": layer.mlp.activation,
        "attention_bias": layer.attention.qkv_bias,
        "use_parallel_residual": spec.block.parallel,
        "tie_word_embeddings": spec.tied_head,
        "rope_parameters": {"partial_rotary_factor": 1.0, **write_rope(layer.attention.rope, layer.head_dim)},
    }


def rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the checkpoint; queries, keys and values of a head are neighbours there too."""
    found = [same("embed.weight", EMBEDDING)]
    attention = ("weight", "bias") if spec.layers[0].attention.qkv_bias else ("weight",)
    for part in attention:
        found.append(same(f"layers.{{i}}.attn.qkv_proj.{part}", f"{LAYER}.attention.query_key_value.{part}"))
        found.append(same(f"layers.{{i}}.attn.out_proj.{part}", f"{LAYER}.attention.dense.{part}"))
    for part in ("weight", "bias"):
        found.append(same(f"layers.{{i}}.attn_norm.{part}", f"{LAYER}.input_layernorm.{part}"))
        found.append(same(f"layers.{{i}}.mlp_norm.{part}", f"{LAYER}.post_attention_layernorm.{part}"))
        found.append(same(f"layers.{{i}}.mlp.up_proj.{part}", f"{LAYER}.mlp.dense_h_to_4h.{part}"))
        found.append(same(f"layers.{{i}}.mlp.down_proj.{part}", f"{LAYER}.mlp.dense_4h_to_h.{part}"))
        found.append(same(f"final_norm.{part}", f"gpt_neox.final_layer_norm.{part}"))
    if not spec.tied_head:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def rename(state: Stored) -> Stored:
    """Names as Hugging Face's class has them now: older checkpoints call the head otherwise and hold buffers."""
    buffers = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(buffers)}
    kept = {name.replace("embed_out.", "lm_head."): tensor for name, tensor in kept.items()}
    return {name if name.startswith(("gpt_neox.", "lm_head.")) else f"gpt_neox.{name}": t for name, t in kept.items()}


GGUF = GGUFLayout(
    "gptneox",
    "gpt_neox",
    {
        "token_embd": "gpt_neox.embed_in",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "lm_head",
        **in_layers(
            LAYER,
            attn_norm="input_layernorm",
            ffn_norm="post_attention_layernorm",
            attn_qkv="attention.query_key_value",
            attn_output="attention.dense",
            ffn_up="mlp.dense_h_to_4h",
            ffn_down="mlp.dense_4h_to_h",
        ),
    },
    sizes={k: v for k, v in SIZES.items() if k not in ("attention.head_count_kv", "attention.key_length")},
    eps=("attention.layer_norm_epsilon", "layer_norm_eps"),
    biases={"attention_bias": ("attn_qkv", "attn_output")},
    rotary="part",
    more=lambda fields, _: {"use_parallel_residual": fields.flag("use_parallel_residual")},
    own=lambda spec: {"use_parallel_residual": spec.block.parallel},
    conversions={"attn_qkv": BY_HEAD},
    bias_kinds=EVERY_PROJECTION,
    needs=("attn_qkv.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias", "output.weight"),
    square=True,
)
FAMILY = Family("gpt_neox", "GPTNeoXForCausalLM", read, write, rules, EMBEDDING, rename, GGUF)
