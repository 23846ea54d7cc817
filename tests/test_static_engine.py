"""Level 2 on accelerators: its decode step, run eagerly here, equals level 1; what it needs is said clearly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, with_layers

from sentinel.adapt.integration import integrate
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.infer.generate import generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.infer.sampling import SamplingSettings
from sentinel.infer.torch.captured import WARM_UP
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


CHOICES = {
    "greedy": SamplingSettings(),
    "sampled": SamplingSettings(temperature=1.3, seed=5),
    "top-k": SamplingSettings(temperature=2.0, top_k=7),
    "nucleus": SamplingSettings(temperature=1.5, top_p=0.8, min_p=0.02),
    "penalised": SamplingSettings(temperature=1.0, repetition_penalty=1.3),
}


@pytest.fixture
def recordings(monkeypatch):
    """What a recording does to the tensors of a step, without a device that records."""
    made = []

    def recorded(step, device):
        for _ in range(WARM_UP):
            step()
        made.append(step)
        return step

    monkeypatch.setattr("sentinel.infer.torch.static.captured", recorded)
    return made


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", ["unequal-rope", "unequal-learned", "mistral"])
def test_tokens_that_the_engine_chooses_are_those_of_the_sampler(choice, name, recordings):
    spec = with_layers(spec_of("llama-grouped"), window=8) if name == "mistral" else SPECS[name]
    decoder, settings = filled_decoder(spec), CHOICES[choice]
    static = StaticTorchEngine(decoder)
    assert static.chooses(settings) == (choice != "penalised")
    for prompts in (PROMPTS[:1], PROMPTS, PROMPTS[:1]):
        expected = list(generate_tokens(make_engine(decoder, 1), prompts, 14, settings))
        assert list(generate_tokens(static, prompts, 14, settings)) == expected
    assert len(recordings) == 3  # one for each cache


def test_a_step_is_recorded_once_for_a_cache_and_a_width(recordings):
    decoder = filled_decoder(spec_of("llama-grouped"))
    engine = StaticTorchEngine(decoder)
    for _ in range(3):
        list(generate_tokens(engine, PROMPTS[:1], 12))
    assert len(recordings) == 1
    engine.set_width(Width((1, 2, 0), (40, 80, 13)))
    found = list(generate_tokens(engine, PROMPTS[:1], 12))
    assert len(recordings) == 2
    plain = make_engine(decoder, 1)
    plain.set_width(Width((1, 2, 0), (40, 80, 13)))
    assert found == list(generate_tokens(plain, PROMPTS[:1], 12))
    engine.set_width(Width.full(decoder.spec))
    list(generate_tokens(engine, PROMPTS[:1], 12))
    assert len(recordings) == 2


def test_tokens_on_the_way_go_on_beside_other_sequences(recordings):
    decoder = filled_decoder(spec_of("llama-grouped"))
    engine, plain = StaticTorchEngine(decoder), make_engine(decoder, 1)
    expected = [list(generate_tokens(plain, [prompt], 20)) for prompt in PROMPTS]
    first = generate_tokens(engine, PROMPTS[:1], 20)
    found = [[next(first) for _ in range(5)], []]
    second = generate_tokens(engine, PROMPTS[1:2], 20)  # another cache: what was recorded is of no use
    for _ in range(15):
        found[0].append(next(first))
        found[1].append(next(second))
    found[0] += list(first)
    found[1] += list(second)
    assert found == expected[:2]
    sequence, logits = engine.open(PROMPTS[2], 2)  # nothing is left open
    assert sequence.slot == 0 and int(np.argmax(logits)) == expected[2][0][0]


def test_generation_ends_where_a_sequence_does_though_more_is_under_way(recordings):
    decoder = filled_decoder(spec_of("gpt2"))
    (third,) = list(generate_tokens(make_engine(decoder, 1), PROMPTS[:1], 12))[2]
    engine = StaticTorchEngine(decoder)
    found = list(generate_tokens(engine, PROMPTS[:1], 12, eos_ids=[third]))
    assert found[-1] == [third] and len(found) <= 3
    assert list(generate_tokens(engine, PROMPTS[:1], 3)) == list(
        generate_tokens(make_engine(decoder, 1), PROMPTS[:1], 3)
    )


def test_half_precision_is_level_1s(recordings):
    decoder = filled_decoder(spec_of("llama-grouped")).to(torch.bfloat16)
    engine = StaticTorchEngine(decoder)
    assert engine.precision == "bf16"
    plain, (prompt,) = make_engine(decoder, 1), PROMPTS[:1]
    np.testing.assert_array_equal(engine.prefill([prompt], 3), plain.prefill([prompt], 3))
    expected = plain.decode_one_token([7])
    np.testing.assert_allclose(engine.decode_one_token([7]), expected, atol=0.04 * np.abs(expected).max())


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
