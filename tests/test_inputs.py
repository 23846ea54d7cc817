"""Model folders of all kinds: what Hugging Face reads is read alike, and what can't be is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, LLAMA3_ROPE, spec_of, unequal_spec
from helpers import filled_decoder, largest_difference, some_tokens
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec, RopeSpec

# Fields of real checkpoints that change nothing.
HARMLESS = {
    "_attn_implementation_autoset": True,
    "_attn_implementation_internal": "sdpa",
    "_name_or_path": "x",
    "add_cross_attention": False,
    "attention_out_bias": False,
    "gradient_checkpointing": True,
    "layer_types": ["full_attention"] * 3,
    "max_window_layers": 28,
    "neftune_noise_alpha": 5,
    "no_such_field": None,
    "no_such_list": [],
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "sliding_window": None,
    "tie_encoder_decoder": False,
    "torch_dtype": "bfloat16",
    "unsloth_fixed": True,
    "unsloth_version": "2025.1",
    "use_sliding_window": False,
}


def spec_from(config: dict) -> ModelSpec:
    return family_of(config["model_type"]).spec_from_config(config)


def saved(folder: Path, name: str, **change):
    """A random model of Hugging Face in ``folder``, and the tensors that it wrote."""
    torch.manual_seed(0)
    fields = {k: v for k, v in {**CONFIGS[name], **change}.items() if not (k == "rope_scaling" and v is None)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2)
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors) -> None:
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def assert_equal_to_hugging_face(folder: Path):
    ours, theirs = load_checkpoint(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = some_tokens(ours.spec)
    with torch.no_grad():
        assert largest_difference(ours(tokens), theirs(tokens).logits) < 1e-5
    return ours


@settings(max_examples=40)
@given(st.data())
@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "llama-multi-query-biases"])
def test_absent_fields_are_those_of_hugging_face(name, data):
    family = family_of(CONFIGS[name]["model_type"])
    fields = {**family.config_from_spec(spec_of(name)), **CONFIGS[name]}
    kept = data.draw(st.sets(st.sampled_from(sorted(set(fields) - {"model_type"}))))
    config = {"model_type": fields["model_type"], **{k: fields[k] for k in kept}}
    try:
        theirs = AutoConfig.for_model(**config)
    except (ValueError, StrictDataclassError):  # heads that do not divide the width, which a head_dim allows here
        if "head_dim" not in kept:
            with pytest.raises(InputError, match="multiple"):
                spec_from(config)
        return
    spec = spec_from(config)
    layer = spec.layers[0]
    assert (spec.vocab_size, spec.n_embd, spec.n_layer) == (
        theirs.vocab_size,
        theirs.hidden_size,
        theirs.num_hidden_layers,
    )
    assert (layer.n_head, spec.max_seq_len, spec.tied_head) == (
        theirs.num_attention_heads,
        theirs.max_position_embeddings,
        theirs.tie_word_embeddings,
    )
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    if attention.rope is None:
        assert layer.intermediate_size == (theirs.n_inner or 4 * theirs.n_embd)
        assert (spec.norm.eps, mlp.activation) == (theirs.layer_norm_epsilon, theirs.activation_function)
    else:
        assert (layer.n_kv_head, layer.head_dim) == (theirs.num_key_value_heads, theirs.head_dim)
        assert layer.intermediate_size == theirs.intermediate_size
        assert (spec.norm.eps, mlp.activation) == (theirs.rms_norm_eps, theirs.hidden_act)
        assert (attention.qkv_bias, mlp.up_bias) == (theirs.attention_bias, theirs.mlp_bias)
        assert attention.rope.theta == theirs.rope_parameters["rope_theta"]


def test_other_names_of_a_field_are_taken():
    names = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 5, "max_position_embeddings": 32}
    config = {"model_type": "gpt2", **names}
    theirs, spec = AutoConfig.for_model(**config), spec_from(config)
    sizes = (spec.n_embd, spec.layers[0].n_head, spec.n_layer, spec.max_seq_len)
    assert sizes == (64, 2, 5, 32) == (theirs.n_embd, theirs.n_head, theirs.n_layer, theirs.n_positions)
    with pytest.raises(InputError, match="hidden_size 64 and n_embd 48 disagree"):
        spec_from({**config, "n_embd": 48})


@pytest.mark.parametrize("name", ["gelu_accurate", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "swish"])
def test_other_names_of_an_activation_are_taken(name, tmp_path):
    saved(tmp_path, "gpt2", activation_function=name)
    assert_equal_to_hugging_face(tmp_path)


ROPES = {
    "theta of before": {"rope_theta": 500},
    "theta inside wins": {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}},
    "old type": {"rope_scaling": {"type": "linear", "factor": 2}},
    "old type null": {"rope_scaling": None, "rope_theta": 300.0},
    "scaling beside theta": {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "default with a factor": {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
    "whole numbers": {"rope_parameters": {k: int(v) if k != "rope_type" else v for k, v in LLAMA3_ROPE.items()}},
    "original length of the context": {
        "rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "original_max_position_embeddings"}
    },
    "original length outside": {"rope_scaling": LLAMA3_ROPE, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_settings_are_those_of_hugging_face(rope, tmp_path):
    saved(tmp_path, "llama-grouped")
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps({**config, **ROPES[rope]}))
    assert_equal_to_hugging_face(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_fields_without_effect_are_taken(name):
    assert spec_from({**CONFIGS[name], **HARMLESS}) == spec_of(name)
    for field, value in HARMLESS.items():
        assert spec_from({**CONFIGS[name], field: value}) == spec_of(name), field
    assert spec_from({**CONFIGS[name], "sliding_window": 4096, "use_sliding_window": False}) == spec_of(name)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama-grouped", {"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number"),
        ("llama-grouped", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ("llama-grouped", {"rope_theta": "10000"}, "rope_theta"),
        ("llama-grouped", {"hidden_size": 48.0}, "hidden_size"),
        ("llama-grouped", {"vocab_size": "97"}, "vocab_size"),
        ("llama-grouped", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("llama-grouped", {"rope_scaling": {"type": "linear", "factor": "2.0"}}, "rope field factor"),
        ("llama-grouped", {"rope_scaling": {"type": "linear"}}, "'factor'"),
        ("llama-grouped", {"rope_scaling": {"factor": 2.0}}, "needs a rope_type"),
        ("llama-grouped", {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": "1"}}, "low_freq_factor"),
        ("llama-grouped", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ("llama-grouped", {"rope_scaling": {"rope_type": ["linear"]}}, "rope_type"),
        ("llama-grouped", {"rope_scaling": "linear"}, "rope_scaling"),
        ("llama-grouped", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llama-grouped", {"layer_types": 3}, "layer_types"),
        ("llama-grouped", {"sliding_window": 32}, "sliding_window"),
        ("llama-grouped", {"use_rope": False}, "use_rope"),
        ("llama-grouped", {"attention_out_bias": True}, "attention_out_bias"),
        ("llama-grouped", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama-grouped", {"head_dim": None, "hidden_size": 50}, "multiple"),
        ("llama-grouped", {"hidden_act": ["silu"]}, "hidden_act"),
        ("gpt2", {"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_what_would_change_the_function_is_refused_by_name(name, change, said):
    with pytest.raises(InputError, match=said):
        spec_from({**CONFIGS[name], **change})


def test_specs_take_whole_numbers_and_refuse_text():
    spec = unequal_spec()
    data = spec.to_dict()
    first = data["layers"][0]

    def with_rope(**change: object) -> dict:
        attention = {**first["attention"], "rope": {**first["attention"]["rope"], **change}}
        return {"layers": [{**first, "attention": attention}, *data["layers"][1:]]}

    assert ModelSpec.from_dict({**data, **with_rope(theta=10000, factor=1)}) == spec
    assert isinstance(RopeSpec(10000).theta, float)
    for change, said in (
        ({"norm": {"kind": "rmsnorm", "eps": "1e-5"}}, "eps"),
        ({"vocab_size": True}, "vocab_size"),
        ({"tied_head": "yes"}, "tied_head"),
        (with_rope(theta="10000"), "theta"),
        (with_rope(factor=None), "factor"),
        (with_rope(low_freq_factor=float("inf")), "low_freq_factor"),
    ):
        with pytest.raises(InputError, match=said):
            ModelSpec.from_dict({**data, **change})


TIED = {"gpt2": "transformer.wte.weight", "llama-multi-head-tied": "model.embed_tokens.weight"}


@pytest.mark.parametrize("name", TIED)
def test_a_stored_head_is_kept_where_the_config_says_tied(name, tmp_path):
    tensors = saved(tmp_path, name)
    assert assert_equal_to_hugging_face(tmp_path).spec.tied_head
    rewrite(tmp_path, {**tensors, "lm_head.weight": tensors[TIED[name]].clone()})
    assert assert_equal_to_hugging_face(tmp_path).spec.tied_head
    rewrite(tmp_path, {**tensors, "lm_head.weight": torch.randn_like(tensors[TIED[name]])})
    assert not assert_equal_to_hugging_face(tmp_path).spec.tied_head
    rest = {key: tensor for key, tensor in tensors.items() if key != TIED[name]}
    rewrite(tmp_path, {**rest, "lm_head.weight": tensors[TIED[name]]})
    assert assert_equal_to_hugging_face(tmp_path).spec.tied_head


@pytest.mark.parametrize("name", TIED)
def test_names_without_prefix_and_old_buffers_are_taken(name, tmp_path):
    tensors = saved(tmp_path, name)
    bare = {key.removeprefix("transformer.").removeprefix("model."): tensor for key, tensor in tensors.items()}
    buffers = {
        "gpt2": {
            "h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
            "h.0.attn.masked_bias": torch.tensor(-1e4),
        },
        "llama-multi-head-tied": {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    }
    rewrite(tmp_path, {**bare, **buffers[name]})
    assert_equal_to_hugging_face(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(dtype, tmp_path):
    rewrite(tmp_path, {key: tensor.to(dtype) for key, tensor in saved(tmp_path, "llama-grouped").items()})
    assert_equal_to_hugging_face(tmp_path)


def test_tensors_that_do_not_belong_are_refused_by_name(tmp_path):
    tensors = saved(tmp_path, "llama-grouped")
    cases = {
        "score.weight": {**tensors, "score.weight": torch.ones(2, 48)},
        "q_proj.bias": {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(48)},
        "layers.3": {**tensors, "model.layers.3.input_layernorm.weight": torch.ones(48)},
        "model.norm.weight": {key: tensor for key, tensor in tensors.items() if key != "model.norm.weight"},
        "lm_head": {key: tensor for key, tensor in tensors.items() if key != "lm_head.weight"},
        "int8": {**tensors, "model.norm.weight": torch.ones(48, dtype=torch.int8)},
    }
    for said, changed in cases.items():
        rewrite(tmp_path, changed)
        with pytest.raises(InputError, match=said):
            load_checkpoint(tmp_path)


def shards(folder: Path, tensors) -> dict[str, str]:
    """Write two shards with an index; returns the index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = sorted(tensors)
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        index.update(dict.fromkeys(part, f"model-{i}.safetensors"))
        save_file({n: tensors[n] for n in part}, folder / f"model-{i}.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def test_shards_are_whole_or_refused(tmp_path):
    tensors = saved(tmp_path, "llama-grouped")
    shards(tmp_path, tensors)
    assert_equal_to_hugging_face(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    first = load_file(tmp_path / "model-0.safetensors")
    name = next(iter(first))
    save_file({k: t for k, t in first.items() if k != name}, tmp_path / "model-0.safetensors")
    with pytest.raises(InputError, match=rf"model-0.safetensors lacks tensor '{name}'"):
        load_checkpoint(tmp_path)
    save_file({**first, **load_file(tmp_path / "model-1.safetensors")}, tmp_path / "model-0.safetensors")
    with pytest.raises(InputError, match="is in two files"):
        load_checkpoint(tmp_path)
    (tmp_path / "model-0.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-0.safetensors is missing"):
        load_checkpoint(tmp_path)
    for damaged in ({}, {"weight_map": []}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match="weight_map"):
            load_checkpoint(tmp_path)


def test_a_whole_file_beside_an_index_is_the_one_that_is_read(tmp_path):
    saved(tmp_path, "llama-grouped")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}')
    assert_equal_to_hugging_face(tmp_path)


def test_shards_of_any_family_and_of_our_own_are_joined(tmp_path):
    for name in ("gpt2", "llama-multi-head-tied"):
        (tmp_path / name).mkdir()
        tensors = saved(tmp_path / name, name)
        AutoModelForCausalLM.from_pretrained(tmp_path / name).save_pretrained(tmp_path / name, max_shard_size="20KB")
        (tmp_path / name / "model.safetensors").unlink(missing_ok=True)
        index = json.loads((tmp_path / name / "model.safetensors.index.json").read_text())["weight_map"]
        assert len(set(index.values())) > 2 and set(index) <= set(tensors)
        assert_equal_to_hugging_face(tmp_path / name)
    model = filled_decoder(unequal_spec())
    save_checkpoint(model, tmp_path / "own", None, Record())
    shards(tmp_path / "own", load_file(tmp_path / "own" / "model.safetensors"))
    tokens = some_tokens(model.spec)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "own")(tokens), model(tokens))
