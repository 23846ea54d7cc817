"""Models that are no family here: what kind of model a config tells of, and the text model within a multimodal one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sentinel.models.families.weights import Stored
from sentinel.plain import is_object

EXPERTS = "a mixture of experts"
RECURRENT = "a state-space or other recurrent model, or a hybrid with one"
ENCODER_DECODER = "an encoder-decoder"
ENCODER = "an encoder, which reads a text in both directions"
MULTIMODAL = "a multimodal model"

# Fields of a config that only such a model has, whatever its family is called; zero, False and null are as good as absent,
# and one expert is none.
FIELDS = {
    RECURRENT: (
        "attn_layer_indices", "conv_L_cache", "conv_kernel", "linear_conv_kernel_dim", "linear_num_value_heads",
        "lru_width", "mamba_d_state", "mamba_num_heads", "ssm_cfg", "ssm_state_size", "state_size",
    ),
    EXPERTS: (
        "ffn_config", "moe_intermediate_size", "moe_num_experts", "n_routed_experts", "num_experts", "num_local_experts",
    ),
    ENCODER_DECODER: ("encoder_layers", "is_encoder_decoder", "num_decoder_layers"),
    MULTIMODAL: ("audio_config", "speech_config", "text_config", "vision_config", "vq_config"),
}  # fmt: skip
# Families whose config may hold none of them.
TYPES = {
    **dict.fromkeys(("rwkv", "xlstm", "mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "lfm2"), RECURRENT),
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "mbart", "marian", "pegasus", "whisper", "fsmt"), ENCODER_DECODER),
    **dict.fromkeys(("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert"), ENCODER),
    **dict.fromkeys(("roberta", "xlm-roberta", "mpnet", "camembert", "nomic_bert"), ENCODER),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "chameleon", "mllama", "phi3_v", "phi4mm", "clip"), MULTIMODAL),
    **dict.fromkeys(("mixtral", "dbrx", "gpt_oss", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "jetmoe"), EXPERTS),
}
# Of the metadata of a GGUF file, without the architecture before it.
GGUF_FIELDS = {
    RECURRENT: ("ssm.conv_kernel", "ssm.state_size", "wkv.head_size", "shortconv.l_cache"),
    EXPERTS: ("expert_count",),
}
# Multimodal models whose language model is another family as it is, when there is only text.
HOLDERS = frozenset({"gemma3", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "mistral3", "smolvlm"})
_INSIDE = (("model.language_model.", "model."), ("language_model.", ""), ("model.text_model.", "model."))


def kind_of(config: Mapping[str, Any]) -> str | None:
    """What kind of model a config that is no family here tells of, None when it does not say."""
    for kind, names in FIELDS.items():
        if any(_counts(config.get(name)) for name in names):
            return kind
    return TYPES.get(str(config.get("model_type")))


def kind_of_gguf(architecture: str, fields: Mapping[str, object]) -> str | None:
    """The same of a GGUF file's metadata."""
    for kind, names in GGUF_FIELDS.items():
        if any(fields.get(name) for name in names):
            return kind
    return TYPES.get(architecture)


def _counts(value: Any) -> bool:
    return bool(value) and (value is True or value != 1)


def text_part(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of the language model within a multimodal one of `HOLDERS`, else None.

    Whether embedding and LM head are one tensor is told by the outer config, where it tells it.
    """
    inner = config.get("text_config")
    if config.get("model_type") not in HOLDERS or not is_object(inner):
        return None
    outer = {name: config[name] for name in ("tie_word_embeddings", "quantization_config") if name in config}
    return {**inner, **outer}


def text_tensors(state: Stored) -> Stored:
    """The tensors of that language model, named as if it stood alone."""
    found: Stored = {}
    for name, tensor in state.items():
        for prefix, instead in _INSIDE:
            if name.startswith(prefix):
                found[instead + name.removeprefix(prefix)] = tensor
                break
        else:
            if name.startswith("lm_head."):
                found[name] = tensor
    return found
