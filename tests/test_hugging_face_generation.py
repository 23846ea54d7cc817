"""`generate()` does what it does for Hugging Face's own models: the behaviours that its tests of generation ask for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, largest_difference, some_tokens
from transformers import DynamicCache, GenerationConfig

from sentinel.formats.hugging_face.model import SentinelForCausalLM, to_hugging_face
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec

NEW = 8
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
WINDOWED = {
    "model_type": "gemma3_text", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "sliding_window": 5,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip


def ordered(spec: ModelSpec, *order: int) -> ModelSpec:
    return dataclasses.replace(spec, layers=tuple(spec.layers[i] for i in order))


SPECS = {
    "llama": spec_of("llama-grouped"),
    "gpt2": spec_of("gpt2"),
    "windows": family_of("gemma3_text").spec_from_config(WINDOWED),
    "empty first": ordered(unequal_spec(), 1, 0, 3),
    "empty last": ordered(unequal_spec(), 0, 3, 1),
}
EVERY = pytest.mark.parametrize("name", SPECS)


def model_of(name: str) -> SentinelForCausalLM:
    return SentinelForCausalLM.from_decoder(filled_decoder(SPECS[name]), Record())


def padded(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Two prompts, the first with three tokens of padding."""
    tokens = some_tokens(spec, length=9)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    return {"input_ids": tokens, "attention_mask": mask}


@EVERY
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"num_beams": 3}, id="beams"),
        pytest.param({"do_sample": True, "top_k": 20, "temperature": 0.8}, id="sampled"),
        pytest.param({"do_sample": True, "num_beams": 2, "num_return_sequences": 2}, id="sampled beams"),
    ],
)
def test_a_cache_changes_no_token(name, options):
    model = model_of(name)
    found = []
    for cache in ({"use_cache": False}, {}, {"cache_implementation": "static"}, {"cache_implementation": "offloaded"}):
        if cache == {"cache_implementation": "offloaded"} and not torch.cuda.is_available():
            continue
        torch.manual_seed(0)
        found.append(model.generate(**padded(SPECS[name]), **{**GREEDY, **options, **cache}))
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("name", ["llama", "gpt2", "windows"])
def test_the_tokens_are_hugging_faces(name):
    model = model_of(name)
    theirs = to_hugging_face(model.decoder)
    inputs = padded(SPECS[name])
    expected = theirs.generate(**inputs, **GREEDY, eos_token_id=None)
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="static"), expected)
    assert torch.equal(
        model.generate(**inputs, **GREEDY, num_beams=3),
        theirs.generate(**inputs, **GREEDY, num_beams=3, eos_token_id=None),
    )


@EVERY
def test_padding_on_the_left_changes_no_token(name):
    model = model_of(name)
    inputs = padded(SPECS[name])
    alone = model.generate(inputs["input_ids"][:1, 3:], **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY)[:1, 3:], alone)


@EVERY
def test_scores_states_and_weights_are_returned(name):
    spec, model = SPECS[name], model_of(name)
    model.set_attn_implementation("eager")
    asked = {"output_scores": True, "output_logits": True, "output_hidden_states": True, "output_attentions": True}
    found = model.generate(**padded(spec), return_dict_in_generate=True, **asked, **GREEDY)
    assert len(found.scores) == len(found.logits) == len(found.hidden_states) == len(found.attentions) == NEW
    assert all(len(states) == spec.n_layer + 1 for states in found.hidden_states)
    for step, weights in enumerate(found.attentions):
        new = 9 if step == 0 else 1
        for layer, weight in zip(spec.layers, weights, strict=True):
            assert weight.shape[:3] == (2, layer.n_head, new)
            if layer.n_head:
                assert torch.allclose(weight.sum(-1), torch.ones(weight.shape[:3]), atol=1e-5)
                assert layer.attention.window is not None or weight.shape[3] == 9 + step


@EVERY
def test_a_text_goes_on_from_its_cache(name):
    model, tokens = model_of(name), some_tokens(SPECS[name], batch=1, length=9)
    first = model.generate(tokens, **{**GREEDY, "max_new_tokens": 4}, return_dict_in_generate=True)
    rest = model.generate(first.sequences, **{**GREEDY, "max_new_tokens": 4}, past_key_values=first.past_key_values)
    assert torch.equal(rest, model.generate(tokens, **GREEDY))


@EVERY
@pytest.mark.parametrize("helper", ["prompt lookup", "assistant"])
def test_drafts_change_no_token(name, helper):
    model, tokens = model_of(name), some_tokens(SPECS[name], batch=1, length=9)
    options = {"prompt_lookup_num_tokens": 2} if helper == "prompt lookup" else {"assistant_model": model_of(name)}
    assert torch.equal(model.generate(tokens, **options, **GREEDY), model.generate(tokens, **GREEDY))


@EVERY
def test_embeddings_are_a_prompt(name):
    model, inputs = model_of(name), padded(SPECS[name])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for use_cache in (True, False):
        found = model.generate(
            inputs_embeds=embeds, attention_mask=inputs["attention_mask"], use_cache=use_cache, **GREEDY
        )
        assert torch.equal(found, model.generate(**inputs, **GREEDY)[:, 9:])


@EVERY
def test_a_prefill_in_pieces_changes_no_token(name):
    model, inputs = model_of(name), padded(SPECS[name])
    found = model.generate(**inputs, **GREEDY, generation_config=GenerationConfig(prefill_chunk_size=4))
    assert torch.equal(found, model.generate(**inputs, **GREEDY))


def test_layers_with_a_window_keep_no_more_than_it():
    model, tokens = model_of("windows"), some_tokens(SPECS["windows"], length=20)
    assert model.config.layer_types == WINDOWED["layer_types"]
    with torch.no_grad():
        cache = model(tokens).past_key_values
        assert [layer.keys.shape[2] for layer in cache.layers] == [4, 20, 4]
        whole = DynamicCache()  # of one who knows of no windows
        assert largest_difference(model(tokens, past_key_values=whole).logits, model(tokens).logits) < 1e-5
        more = some_tokens(SPECS["windows"], length=7, seed=2)
        for kept in (cache, whole):
            found = model(more, past_key_values=kept).logits
            assert largest_difference(found, model(torch.cat((tokens, more), 1)).logits[:, 20:]) < 1e-5
