"""Specifications: validation, JSON, arithmetic, and the refusal of what is not supported."""

from __future__ import annotations

import json
import re

import pytest
import torch
from conftest import CONFIGS, spec_of, unequal_spec
from helpers import filled_decoder, layer_of, resized, some_tokens
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sentinel.adapt.integration import integrate
from sentinel.errors import InputError
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.models.families import FAMILIES, family_of
from sentinel.models.kv_cache import KVCache
from sentinel.models.spec import ModelSpec, RopeSpec


@given(st.integers(0, 8), st.integers(1, 4), st.integers(1, 64), st.integers(0, 4096))
def test_json_round_trip(groups, per_group, head_dim, neurons):
    spec = unequal_spec()
    layer = resized(spec.layers[0], groups * per_group, groups, head_dim * 2, neurons)
    spec = ModelSpec(**{**vars(spec), "layers": (*spec.layers, layer)})
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("name", [*CONFIGS, "unequal"])
def test_parameter_count_is_that_of_the_decoder(name):
    spec = unequal_spec() if name == "unequal" else spec_of(name)
    counted = sum(parameter.numel() for parameter in filled_decoder(spec).parameters())
    assert spec.parameter_count(gates=True) == counted


@pytest.mark.parametrize("name", [*CONFIGS, "unequal", "integrated"])
def test_flops_are_those_that_torch_counts(name):
    """One more token beside ``context - 1`` cached ones. torch counts products of matrices; vectors are added by hand."""
    decoder = filled_decoder(unequal_spec() if name == "unequal" else spec_of(name.replace("integrated", "gpt2")))
    if name == "integrated":
        decoder = integrate(decoder, baseline=decoder, rank=4)
    spec, context = decoder.spec, 9
    tokens, cache = some_tokens(spec, 1, context), KVCache(spec.with_baseline_layers(), 1, context)
    with torch.no_grad():
        decoder(tokens[:, :-1], cache=cache)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            decoder(tokens[:, -1:], cache=cache)
    unread = re.compile(r".*attn\.gate|baseline\.final_norm\..*")  # gates are folded into what is run
    vectors = sum(p.numel() for n, p in decoder.named_parameters() if p.dim() < 2 and not unread.fullmatch(n))
    rows = spec.n_embd * (1 + spec.learned_positions) * (2 if name == "integrated" else 1)  # of the embeddings
    assert spec.flops_per_token(context) == counter.get_total_flops() + 2 * (vectors + rows)


# Parameters, as Hugging Face counts them.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "smollm2-135m": 134_515_008,
    "smollm3-3b": 3_075_098_624,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "gemma-2b": 2_506_172_416,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-270m": 268_098_176,
    "phi-1.5": 1_418_270_720,
    "phi-3-mini": 3_821_079_552,
    "granite-3.3-2b": 2_533_539_840,
    "olmo2-1b": 1_484_916_736,
    "stablelm-2-1.6b": 1_644_515_328,
    "starcoder2-3b": 3_030_371_328,
    "starcoderbase-1b": 1_137_207_296,
    "opt-125m": 125_239_296 - 2 * 768,  # without the two rows of positions that nobody looks up
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "gpt-j-6b": 6_050_882_784,
}


@pytest.mark.parametrize("name", KNOWN_SHAPES)
def test_known_shapes_have_the_published_sizes(name):
    spec = family_of(KNOWN_SHAPES[name]["model_type"]).spec_from_config(KNOWN_SHAPES[name])
    assert spec.parameter_count() == PUBLISHED[name]


def test_every_family_has_a_known_shape():
    assert {config["model_type"] for config in KNOWN_SHAPES.values()} == set(FAMILIES)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((3, 2, 8, 1), "multiple"),
        ((0, 1, 8, 1), "zero together"),
        ((-1, 1, 8, 1), "n_head"),
        ((1, 1, 0, 1), "head_dim"),
        ((1, 1, 8, 2.5), "intermediate_size"),
    ],
)
def test_impossible_layers_are_refused(sizes, said):
    with pytest.raises(InputError, match=said):
        layer_of(*sizes)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"dim": 7}, "rope dim must be an even number of at least 2, not 7"),
        ({"dim": 0}, "rope dim must be an even number of at least 2, not 0"),
        ({"dim": 10}, "rope dim 10 is above the head_dim of 8"),
        (
            {"type": "longrope", "short_factors": (1.0,) * 4, "long_factors": (1.0,) * 16},
            "needs 4 short and long factors",
        ),
        (
            {"type": "longrope", "short_factors": (1.0,) * 16, "long_factors": (1.0,) * 4},
            "needs 4 short and long factors",
        ),
    ],
)
def test_impossible_rotary_positions_are_refused(rope, said):
    with pytest.raises(InputError, match=said):
        layer_of(1, 1, 8, 1, rope=RopeSpec(1e4, **rope))


def test_rotary_settings_that_fit_are_taken():
    fitting = RopeSpec(1e4, "longrope", short_factors=(1.0,) * 4, long_factors=(2.0,) * 4)
    assert layer_of(1, 1, 8, 1, rope=fitting).attention.rope == fitting
    assert layer_of(1, 1, 8, 1, rope=RopeSpec(1e4, dim=2)).attention.rope == RopeSpec(1e4, dim=2)


def test_damaged_json_is_refused_by_name():
    good = unequal_spec().to_dict()
    cases = {
        "version": {**good, "spec_version": 99},
        "unknown field colour": {**good, "colour": 1},
        "missing field norm": {k: v for k, v in good.items() if k != "norm"},
        "layer 0": {**good, "layers": [{"attention": {"n_head": 1}}]},
        "layer 0: attention must be an object": {**good, "layers": [{**good["layers"][0], "attention": 3}]},
        "layer 0: mlp must be an object": {**good, "layers": [{**good["layers"][0], "mlp": 3}]},
        "layer 0: expected an object": {**good, "layers": [3]},
    }
    for said, data in cases.items():
        with pytest.raises(InputError, match=said):
            ModelSpec.from_json(json.dumps(data))
    with pytest.raises(InputError, match="not valid JSON"):
        ModelSpec.from_json("{")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "quick_gelu"}, "quick_gelu"),
        ("gpt2", {"n_head": 5}, "n_head"),
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("gpt2", {"sliding_window": 4}, "sliding_window"),
        ("llama-grouped", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "short_factor"),
        ("llama-grouped", {"rope_parameters": {"rope_type": "proportional"}}, "proportional"),
        ("llama-grouped", {"quantization_config": {}}, "quantization_config"),
        ("llama-grouped", {"hidden_size": 0}, "hidden_size"),
    ],
)
def test_unsupported_config_fields_are_refused_by_name(name, change, said):
    config = {**CONFIGS[name], **change}
    with pytest.raises(InputError, match=said):
        family_of(config["model_type"]).spec_from_config(config)


def test_unsupported_family_names_the_supported_ones():
    with pytest.raises(InputError, match=r"'mamba'.*gpt2.*llama"):
        family_of("mamba")


def test_a_cache_has_room_for_a_sequence_and_a_position_at_least():
    assert KVCache(unequal_spec(), 1, 1).nbytes == unequal_spec().kv_bytes_per_position()
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match=f"not {sizes[0]} and {sizes[1]}"):
            KVCache(unequal_spec(), *sizes)
