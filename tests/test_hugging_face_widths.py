"""Stored widths through Hugging Face's classes."""

from __future__ import annotations

import pytest
import torch
from helpers import some_tokens
from transformers import AutoConfig, AutoModelForCausalLM

from sentinel.errors import InputError
from sentinel.formats.sources import load

GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def test_an_elastic_model_is_elastic_through_the_auto_classes(elastic):
    expected = load(elastic).decoder
    tokens = some_tokens(expected.spec)
    model = AutoModelForCausalLM.from_pretrained(elastic)
    with torch.no_grad():
        dense = expected(tokens)
        assert torch.equal(model(tokens).logits, dense)
        expected.set_width(0.5, 0.5)
        pruned = expected(tokens)
        assert not torch.allclose(pruned, dense)
        model.set_width(0.5, 0.5)
        assert torch.equal(model(tokens).logits, pruned)
        chosen = AutoModelForCausalLM.from_pretrained(elastic, heads=0.5, neurons=0.5)
        config = AutoConfig.from_pretrained(elastic, heads=0.5, neurons=0.5)
        by_config = AutoModelForCausalLM.from_pretrained(elastic, config=config)
        for each in (chosen, by_config):
            assert torch.equal(each(tokens).logits, pruned)
            assert torch.equal(each.generate(tokens, use_cache=False, **GREEDY), each.generate(tokens, **GREEDY))


def test_every_level_takes_another_type(elastic):
    model = AutoModelForCausalLM.from_pretrained(elastic, dtype=torch.float64)
    tokens = some_tokens(model.decoder.spec)
    for level in (0.5, 0.0, 0.5):
        model.set_width(level, level)
        assert model(tokens).logits.dtype == torch.float64
    model.float().set_width(0.0)
    assert model(tokens).logits.dtype == torch.float32


def test_levels_that_are_not_there_are_refused(elastic, worded):
    with pytest.raises(InputError, match="stored are"):
        AutoModelForCausalLM.from_pretrained(elastic, heads=0.3)
    with pytest.raises(InputError, match="stores no widths"):
        AutoModelForCausalLM.from_pretrained(worded, heads=0.5)


def test_a_level_is_not_set_under_an_adapter(elastic):
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(elastic)
    peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    with pytest.raises(InputError, match="adapters"):
        model.set_width(0.5, 0.5)
    assert model.config.heads == 0.0
