"""Level 2 on accelerators: its decode step, run eagerly here, equals level 1; what it needs is said clearly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder

from sentinel.adapt.integration import integrate
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.infer.generate import generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.infer.torch.static import StaticTorchEngine
from sentinel.models.width import Width

SPECS = {name: spec_of(name) for name in ("gpt2", "llama-grouped", "llama-rope-llama3", "llama-multi-query-biases")}
SPECS |= {"unequal-rope": unequal_spec(), "unequal-learned": unequal_spec("learned")}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7, 9]]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_static_step_equals_level_1(name, prompts):
    decoder = filled_decoder(SPECS[name])
    plain, static = make_engine(decoder, 1), StaticTorchEngine(decoder)
    for count in (9, 4):  # the second time, the cache is used again
        np.testing.assert_array_equal(static.prefill(prompts, count), plain.prefill(prompts, count))
        for step in range(count - 1):
            tokens = [(7 * step + row) % 97 for row in range(len(prompts))]
            expected = plain.decode_one_token(tokens)
            np.testing.assert_allclose(static.decode_one_token(tokens), expected, rtol=1e-4, atol=1e-4)


def test_static_engine_follows_a_pruning_level():
    decoder = filled_decoder(spec_of("llama-grouped"))
    decoder.use(Width((1, 2, 0), (40, 80, 13)))
    found = list(generate_tokens(StaticTorchEngine(decoder), PROMPTS[:1], 12))
    assert found == list(generate_tokens(make_engine(decoder, 1), PROMPTS[:1], 12))


def test_static_engine_runs_skips_and_baseline():
    decoder = integrate(filled_decoder(spec_of("llama-grouped")), "all")
    fusions = decoder.integration
    assert fusions is not None
    with torch.no_grad():  # a fresh integration adds nothing, and would hide that it was left out
        for parameter in fusions.parameters():
            parameter.add_(0.1)
    for prompts in (PROMPTS[:1], PROMPTS):
        plain, static = make_engine(decoder, 1), StaticTorchEngine(decoder)
        static.prefill(prompts, 5), plain.prefill(prompts, 5)
        for step in range(4):
            tokens = [(7 * step + row) % 97 for row in range(len(prompts))]
            expected = plain.decode_one_token(tokens)
            np.testing.assert_allclose(static.decode_one_token(tokens), expected, rtol=1e-4, atol=1e-4)


def test_static_engine_refuses_what_does_not_fit():
    engine = StaticTorchEngine(filled_decoder(spec_of("gpt2")))
    with pytest.raises(InputError, match="prefill first"):
        engine.decode_one_token([1])
    engine.prefill([[1, 2]], 1)
    engine.decode_one_token([1])
    with pytest.raises(InputError, match="used up"):
        engine.decode_one_token([1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_said_in_one_sentence(capsys):
    for level in ("1", "2"):
        arguments = ["generate", "gpt2", "hello", "--random-weights", "0", "--level", level, "--device", "cuda"]
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("sentinel: device 'cuda' is not available here") and said.count("\n") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_step_equals_level_1_on_an_accelerator():
    decoder = filled_decoder(spec_of("llama-grouped")).to("cuda")
    found = list(generate_tokens(make_engine(decoder, 2), PROMPTS, 12))
    assert found == list(generate_tokens(make_engine(decoder, 1), PROMPTS, 12))
    with pytest.raises(InputError, match="level 3 runs on the CPU"):
        make_engine(decoder, 3)
