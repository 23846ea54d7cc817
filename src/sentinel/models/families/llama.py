"""Llama (``model_type: llama``; SmolLM2 too): RMSNorm, rotary positions, gated SiLU MLP, grouped-query attention."""

from __future__ import annotations

from typing import Any, cast

from sentinel.errors import InputError
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.weights import Rule, State, same, separate_qkv
from sentinel.models.spec import LayerSpec, ModelSpec, RopeSpec, RopeType

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
EMBEDDING = "model.embed_tokens.weight"
ROPE_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
}
ROPE_NEEDS = {"default": (), "linear": ("factor",), "llama3": tuple(ROPE_FIELDS)}


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """Specification of a Hugging Face Llama ``config.json``. Unsupported fields raise `InputError` by name."""
    read = ConfigReader(MODEL_TYPE, config)
    width, heads = read.integer("hidden_size", 4096), read.integer("num_attention_heads", 32)
    head_dim = read.optional_integer("head_dim") or width // heads
    if width % heads and head_dim == width // heads:
        raise InputError(f"llama config: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    layer = LayerSpec(
        n_head=heads,
        n_kv_head=read.optional_integer("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=read.integer("intermediate_size", 11008),
    )
    attention_bias, mlp_bias = read.flag("attention_bias", False), read.flag("mlp_bias", False)
    context = read.integer("max_position_embeddings", 2048)
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=read.integer("vocab_size", 32000),
        n_embd=width,
        max_seq_len=context,
        layers=(layer,) * read.integer("num_hidden_layers", 32),
        norm="rmsnorm",
        norm_eps=read.number("rms_norm_eps", 1e-6),
        positions="rope",
        rope=_rope(read, context),
        activation=read.activation("hidden_act", "silu"),
        gated_mlp=True,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        up_bias=mlp_bias,
        down_bias=mlp_bias,
        tied_head=read.flag("tie_word_embeddings", False),
    )
    read.ignore("pretraining_tp", "is_llama_config")  # notes of older exports, without effect on the function
    read.ignore("attention_dropout", "initializer_range")  # of training from scratch only
    read.done()
    return spec


def _rope(read: ConfigReader, context: int) -> RopeSpec:
    """Rotary settings as Hugging Face derives them.

    ``rope_parameters`` since transformers 5; ``rope_scaling``, which wins, and ``rope_theta`` before. The original length
    of llama3 is the context where none is given; the other fields that a type needs must be there.
    """
    scaling, parameters = read.mapping("rope_scaling"), read.mapping("rope_parameters")
    parameters = dict(scaling or parameters or {})
    theta, original = read.number("rope_theta", 10000.0), read.optional_integer("original_max_position_embeddings")
    theta = read.checked_number("rope_theta", parameters.pop("rope_theta", theta))
    old_type = parameters.pop("type", None)
    rope_type: Any = parameters.pop("rope_type", old_type)
    if rope_type is None and parameters:
        raise InputError(f"llama config: rope field {sorted(parameters)[0]!r} needs a rope_type")
    rope_type = rope_type or "default"
    if not isinstance(rope_type, str) or rope_type not in ROPE_NEEDS:
        raise InputError(f"llama config: rope_type {rope_type!r} is not supported (default, linear and llama3 are)")
    if parameters.get("partial_rotary_factor") in (None, 1):
        parameters.pop("partial_rotary_factor", None)
    if unknown := sorted(set(parameters) - set(ROPE_FIELDS)):
        raise InputError(f"llama config: rope field {unknown[0]!r} is not supported")
    if rope_type == "llama3":
        parameters["original_max_position_embeddings"] = original or parameters.get(
            "original_max_position_embeddings", context
        )
    settings: dict[str, Any] = {}
    for name in ROPE_NEEDS[rope_type]:
        if name not in parameters:
            raise InputError(f"llama config: rope_type {rope_type!r} needs the rope field {name!r}")
        settings[ROPE_FIELDS[name]] = read.checked_number(f"rope field {name}", parameters[name])
    return RopeSpec(theta=theta, type=cast(RopeType, rope_type), **settings)


def config_from_spec(spec: ModelSpec) -> dict[str, Any]:
    """Inverse of `spec_from_config`, for models whose layers are all alike."""
    layer, rope = spec.layers[0], spec.rope
    assert rope is not None
    if (spec.out_bias, spec.down_bias) != (spec.qkv_bias, spec.up_bias):
        raise InputError("Hugging Face's Llama has no bias on single projections; keep this model in sentinel's format")
    parameters: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
    if rope.type != "default":
        parameters["factor"] = rope.factor
    if rope.type == "llama3":
        parameters["low_freq_factor"] = rope.low_freq_factor
        parameters["high_freq_factor"] = rope.high_freq_factor
        parameters["original_max_position_embeddings"] = rope.original_max_seq_len
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.n_embd,
        "num_attention_heads": layer.n_head,
        "num_key_value_heads": layer.n_kv_head,
        "head_dim": layer.head_dim,
        "num_hidden_layers": spec.n_layer,
        "max_position_embeddings": spec.max_seq_len,
        "intermediate_size": layer.intermediate_size,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": spec.activation,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.up_bias,
        "tie_word_embeddings": spec.tied_head,
        "rope_parameters": parameters,
    }


def weight_rules(spec: ModelSpec) -> list[Rule]:
    """Every tensor of the family's checkpoint."""
    names = {
        "attn.out_proj": ("self_attn.o_proj", spec.out_bias),
        "mlp.gate_proj": ("mlp.gate_proj", spec.up_bias),
        "mlp.up_proj": ("mlp.up_proj", spec.up_bias),
        "mlp.down_proj": ("mlp.down_proj", spec.down_bias),
    }
    rules = [
        same("embed.weight", EMBEDDING),
        same("final_norm.weight", "model.norm.weight"),
        same("layers.{i}.attn_norm.weight", "model.layers.{i}.input_layernorm.weight"),
        same("layers.{i}.mlp_norm.weight", "model.layers.{i}.post_attention_layernorm.weight"),
    ]
    for part in ("weight", "bias") if spec.qkv_bias else ("weight",):
        qkv = (f"model.layers.{{i}}.self_attn.{p}_proj.{part}" for p in "qkv")
        rules.append(separate_qkv(f"layers.{{i}}.attn.qkv_proj.{part}", *qkv))
    for ours, (theirs, bias) in names.items():
        parts = ("weight", "bias") if bias else ("weight",)
        rules.extend(same(f"layers.{{i}}.{ours}.{part}", f"model.layers.{{i}}.{theirs}.{part}") for part in parts)
    if not spec.tied_head:
        rules.append(same("lm_head.weight", "lm_head.weight"))
    return rules


def normalise_names(state: State) -> State:
    """Names as Hugging Face's class has them now: older checkpoints hold rotary buffers, bare ones lack the prefix."""
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    return {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": t for name, t in kept.items()}
