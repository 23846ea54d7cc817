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
from sentinel.formats.sources import KNOWN_SHAPES
from sentinel.models.families import family_of
from sentinel.models.kv_cache import KVCache
from sentinel.models.spec import ModelSpec


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


def test_known_shapes_have_the_published_sizes():
    def count(name):
        return family_of(KNOWN_SHAPES[name]["model_type"]).spec_from_config(KNOWN_SHAPES[name]).parameter_count()

    assert [count(n) for n in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "smollm2-135m")] == [
        124_439_808,
        354_823_168,
        774_030_080,
        1_557_611_200,
        134_515_008,
    ]


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


def test_damaged_json_is_refused_by_name():
    good = unequal_spec().to_dict()
    cases = {
        "version": {**good, "spec_version": 99},
        "unknown field colour": {**good, "colour": 1},
        "missing field norm": {k: v for k, v in good.items() if k != "norm"},
        "layer 0": {**good, "layers": [{"attention": {"n_head": 1}}]},
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
