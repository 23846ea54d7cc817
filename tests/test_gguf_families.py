"""GGUF files of every family that llama.cpp has, written as its converter does, are read as the model that they hold.

Source of the conventions: ``convert_hf_to_gguf.py`` of llama.cpp, the class of each architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import CONFIGS as FIRST_CONFIGS
from family_configs import CONFIGS, hugging_face_model
from helpers import largest_difference, some_tokens
from tokenizers.pre_tokenizers import ByteLevel

from sentinel.errors import InputError
from sentinel.formats.sources import load
from sentinel.models.families import FAMILIES, family_of_gguf

PLAIN = {"use_sliding_window": False, "sliding_window": None, "layer_types": None}
BIASES = {"attention_bias": True, "mlp_bias": True}
SCALED = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
LOCAL = {"sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}

# By name: llama.cpp's architecture, a config of the tests of families, and what is otherwise in a file that can hold it.
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-yarn": ("llama", "llama-yarn", {}),
    "mistral": ("llama", "mistral", {}),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen3": ("qwen3", "qwen3", {}),
    "qwen3-bias": ("qwen3", "qwen3-bias-window", PLAIN),
    "smollm3": ("smollm3", "smollm3", {}),
    "smollm3-bias": ("smollm3", "smollm3", BIASES),
    "phi3": ("phi3", "phi3", {}),
    "phi3-no-window": ("phi3", "phi3", {"sliding_window": None}),
    "phi3-longrope": ("phi3", "phi3-longrope", {}),
    "phi3-partial": ("phi3", "phi3-partial", {}),
    "granite": ("granite", "granite", {}),
    "granite-bias": ("granite", "granite", BIASES),
    "olmo2": ("olmo2", "olmo2", {}),
    "olmo2-bias": ("olmo2", "olmo2-bias", {}),
    "gemma": ("gemma", "gemma", {}),
    "gemma2": ("gemma2", "gemma2", {"query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3", "gemma3", {"query_pre_attn_scalar": 8}),
    "gemma3-scaled": (
        "gemma3",
        "gemma3",
        {"query_pre_attn_scalar": 8, "final_logit_softcapping": 20.0, "rope_parameters": {**SCALED, **LOCAL}},
    ),
    "gptneox": ("gptneox", "gpt_neox", {"intermediate_size": 80}),
    "gptneox-sequential": ("gptneox", "gpt_neox-sequential", {"intermediate_size": 80}),
    "gpt2": ("gpt2", "gpt2", {}),
    "phi2": ("phi2", "phi", {"num_key_value_heads": 6, "intermediate_size": 192}),
    "stablelm": ("stablelm", "stablelm", {}),
    "stablelm-parallel": ("stablelm", "stablelm-parallel", {}),
    "starcoder": ("starcoder", "gpt_bigcode", {}),
    "starcoder2": ("starcoder2", "starcoder2", {"sliding_window": None}),
    "starcoder2-no-bias": ("starcoder2", "starcoder2", {"sliding_window": None, "use_bias": False}),
}
LIKE_LLAMA = ("llama", "smollm3", "granite")  # the converter interleaves the halves of their queries and keys
LIKE_GEMMA = ("gemma", "gemma2", "gemma3")
ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


def model_of(name: str) -> Any:
    _, base, changed = FILES[name]
    if base in CONFIGS:
        family, fields = CONFIGS[base]
    else:
        family, fields = FIRST_CONFIGS[base]["model_type"], {**FIRST_CONFIGS[base]}
        del fields["model_type"]
    return hugging_face_model(family, {**fields, **changed})


# --- fields ----------------------------------------------------------------------------------------------------------


def sizes(config: Any) -> dict[str, Any]:
    """What every class of the converter writes, by the names of `gguf.GGUFWriter`'s methods."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "head_count": config.num_attention_heads,
    }


def of_every_text_model(config: Any) -> dict[str, Any]:
    """What the class ``TextModel`` writes."""
    found = {**sizes(config), "head_count_kv": getattr(config, "num_key_value_heads", None)}
    rope = config.rope_parameters
    found["rope_freq_base_swa"] = rope.get("sliding_attention", {}).get("rope_theta")
    rope = rope.get("full_attention", rope)
    found["rope_freq_base"] = rope["rope_theta"]
    if rope["rope_type"] in ("linear", "yarn"):
        found["rope_scaling_type"] = gguf.RopeScalingType(rope["rope_type"])
        found["rope_scaling_factor"] = rope["factor"]
        found["rope_scaling_orig_ctx_len"] = rope.get("original_max_position_embeddings")
    found["layer_norm_rms_eps"] = getattr(config, "rms_norm_eps", None)
    found["layer_norm_eps"] = getattr(config, "norm_epsilon", None)
    head_dim = getattr(config, "head_dim", None)
    return {**found, "key_length": head_dim, "value_length": head_dim}


def llama(config: Any) -> dict[str, Any]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {**of_every_text_model(config), "vocab_size": config.vocab_size, "rope_dimension_count": head_dim}


def granite(config: Any) -> dict[str, Any]:
    return {
        **llama(config),
        "attention_scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def gemma(config: Any) -> dict[str, Any]:
    return {
        **sizes(config),
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "key_length": config.head_dim,
        "value_length": config.head_dim,
    }


def gemma2(config: Any) -> dict[str, Any]:
    caps = {name: getattr(config, name) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    return {**gemma(config), **caps, "sliding_window": config.sliding_window}


def gemma3(config: Any) -> dict[str, Any]:
    cap = {"final_logit_softcapping": config.final_logit_softcapping}
    return {**of_every_text_model(config), **cap, "sliding_window": config.sliding_window}


def phi3(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    original = rope.get("original_max_position_embeddings", config.original_max_position_embeddings)
    found = {
        **sizes(config),
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_dimension_count": rotary_dim(config),
        "rope_freq_base": rope["rope_theta"],
        "rope_scaling_orig_ctx_len": original,
        "sliding_window": config.sliding_window or 0,
    }
    if "long_factor" in rope:
        found["rope_scaling_attn_factors"] = float(
            np.sqrt(1 + np.log(config.max_position_embeddings / original) / np.log(original))
        )
    return found


def with_layer_norm(config: Any, **more: Any) -> dict[str, Any]:
    eps = getattr(config, "layer_norm_eps", None) or getattr(config, "layer_norm_epsilon", None)
    return {**sizes(config), "layer_norm_eps": eps, **more}


def rotary_dim(config: Any) -> int:
    share = config.rope_parameters.get("partial_rotary_factor", 1.0)
    return int(share * (config.hidden_size // config.num_attention_heads))


FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    **dict.fromkeys(("llama", "smollm3"), llama),
    **dict.fromkeys(("qwen2", "qwen3", "olmo2", "starcoder2"), of_every_text_model),
    "granite": granite,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "phi3": phi3,
    "phi2": lambda c: with_layer_norm(c, rope_dimension_count=rotary_dim(c), head_count_kv=c.num_attention_heads),
    "stablelm": lambda c: with_layer_norm(
        c,
        rope_dimension_count=rotary_dim(c),
        head_count_kv=c.num_key_value_heads,
        parallel_residual=c.use_parallel_residual,
    ),
    "gptneox": lambda c: with_layer_norm(
        c, rope_dimension_count=rotary_dim(c), parallel_residual=c.use_parallel_residual
    ),
    "gpt2": with_layer_norm,
    "starcoder": lambda c: with_layer_norm(c, head_count_kv=1),
}


# --- tensors ---------------------------------------------------------------------------------------------------------


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of every head [heads * D, ...] taken in turn."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def converted(architecture: str, name: str, array: np.ndarray, config: Any) -> np.ndarray:
    """What the converter makes of a tensor of Hugging Face."""
    heads = config.num_attention_heads
    if architecture in LIKE_LLAMA and ".q_proj." in name:
        return interleaved(array, heads)
    if architecture in LIKE_LLAMA and ".k_proj." in name:
        return interleaved(array, config.num_key_value_heads)
    if architecture in LIKE_GEMMA and name.endswith("norm.weight"):
        return array + 1
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return array.T
    if architecture == "gptneox" and ".query_key_value." in name:
        split = array.reshape(heads, 3, -1, *array.shape[1:])
        return np.concatenate([split[:, i].reshape(-1, *array.shape[1:]) for i in range(3)])
    return array


def tensors_of(architecture: str, model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of the file; of a tied head there is the embedding alone."""
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        yield theirs, np.ascontiguousarray(converted(architecture, name, tensor.numpy(), config))
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in ("long", "short"):
        if architecture == "phi3" and f"{kind}_factor" in rope:
            yield f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], dtype=np.float32)


def write(path: Path, name: str, model: Any, fields: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """The file that the converter writes, but for ``fields`` and ``tensors`` ("__" for "."), left out where None."""
    architecture = FILES[name][0]
    writer = gguf.GGUFWriter(str(path), architecture)
    for field, value in {**FIELDS[architecture](model.config), **(fields or {})}.items():
        if value is not None:
            getattr(writer, f"add_{field}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*sorted(ByteLevel.alphabet())[:96], "ab"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    changed = {tensor.replace("__", "."): array for tensor, array in tensors.items()}
    for tensor, array in {**dict(tensors_of(architecture, model)), **changed}.items():
        if array is not None:
            writer.add_tensor(tensor, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- tests -----------------------------------------------------------------------------------------------------------


def test_every_family_of_llama_cpp_has_a_file_here():
    """llama.cpp has no OPT, and of GPT-J only the name; Mistral's files are a Llama's."""
    read = {name: family_of_gguf(name, {}, "m.gguf")[0].model_type for name, _, _ in FILES.values()}
    assert set(FAMILIES) - set(read.values()) == {"gptj", "mistral", "opt"}
    assert len(set(read.values())) == len(read)


@pytest.mark.parametrize("name", FILES)
def test_logits_equal_hugging_face(name, tmp_path):
    model = model_of(name)
    ours = load(str(write(tmp_path / "m.gguf", name, model))).decoder
    with torch.no_grad():
        for length in (17, 40):
            tokens = some_tokens(ours.spec, length=length)
            assert largest_difference(ours(tokens), model(tokens).logits) < 1e-5


def test_a_shape_alone_is_taken_by_architecture(tmp_path):
    path = write(tmp_path / "m.gguf", "gemma2", model_of("gemma2"))
    assert load(str(path), random_weights=0).spec == load(str(path)).spec


def test_a_pattern_of_windows_is_followed(tmp_path):
    """As an interval or layer by layer; a window of 0 is none."""
    model = model_of("gemma3")

    def windows(**fields):
        spec = load(str(write(tmp_path / "m.gguf", "gemma3", model, fields=fields))).spec
        return [layer.attention.window for layer in spec.layers]

    assert windows() == [5, 5, 5, 5, 5, None, 5]
    assert windows(sliding_window_pattern=[True, False] * 3 + [True]) == [5, None] * 3 + [5]
    assert windows(sliding_window=None) == windows(sliding_window=0) == [None] * 7


def test_the_largest_gemmas_scale_scores_by_their_width(tmp_path):
    """llama.cpp tells them by their layers alone."""
    family, fields = CONFIGS["gemma2"]
    model = hugging_face_model(family, {**fields, "num_hidden_layers": 46, "query_pre_attn_scalar": 8})
    spec = load(str(write(tmp_path / "m.gguf", "gemma2", model))).spec
    assert spec.layers[0].attention.score_scale == pytest.approx((48 // 6) ** -0.5)


@pytest.mark.parametrize(
    ("name", "fields", "tensors", "said"),
    [
        ("qwen2", {"sliding_window": 4}, {}, "'qwen2.attention.sliding_window' is not supported"),
        ("qwen3", {"expert_count": 8}, {}, "a mixture of experts"),
        ("olmo2", {"sliding_window": 4}, {}, "sliding_window"),
        ("granite", {"logit_scale": None}, {}, "'granite.logit_scale' is missing"),
        ("gemma3", {"sliding_window_pattern": [True] * 3}, {}, "3 entries for 7 layers"),
        ("gptneox", {"head_count_kv": 3}, {}, "head_count_kv"),
        ("gptneox", {"parallel_residual": None}, {}, "use_parallel_residual"),
        ("starcoder", {"head_count_kv": 4}, {}, "head_count_kv"),
        ("phi3", {"rope_dimension_count": 10}, {}, "dimension_count"),
        ("phi3-longrope", {}, {"rope_factors_short__weight": None}, "rope_factors_short"),
        ("phi2", {}, {"output__weight": None}, "bias"),
        ("stablelm", {}, {"blk__0__attn_q_norm__weight": np.ones(8, np.float32)}, "attn_q_norm"),
        ("qwen2", {}, {"blk__0__ffn_gate_inp__weight": np.ones((4, 48), np.float32)}, "ffn_gate_inp"),
        ("gpt2", {}, {"position_embd__weight": None}, "wpe"),
        ("llama-yarn", {"rope_scaling_yarn_attn_factor": 2.0}, {}, "yarn_attn_factor"),
        (
            "gptneox",
            {},
            {"blk__1__attn_qkv__weight": np.ones((5, 48), np.float32)},
            "layers.1.attention.query_key_value.weight",
        ),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused_by_name(name, fields, tensors, said, tmp_path):
    path = write(tmp_path / "m.gguf", name, model_of(name), fields=fields, **tensors)
    with pytest.raises(InputError, match=said):
        load(str(path))


@pytest.mark.parametrize("architecture", ["gptj", "bloom"])
def test_other_architectures_are_refused_by_name(architecture, tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match=rf"architecture '{architecture}' is not supported \(deci, gemma, "):
        load(str(tmp_path / "m.gguf"))
