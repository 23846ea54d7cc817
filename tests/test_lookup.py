"""Prompt lookup: the same tokens as without it, by fewer passes, and off when it does not pay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import spec_of, unequal_spec
from helpers import ToyEngine, filled_decoder

from sentinel.errors import InputError
from sentinel.infer.generate import generate_tokens
from sentinel.infer.lookup import PromptLookup
from sentinel.infer.opening import make_engine
from sentinel.infer.sampling import SamplingSettings, token_probabilities

LOOP = [5, 6, 7, 8, 9] * 3
ENGINES = [(0, None), (1, None), (2, None), (3, "int8"), (3, "int4")]


def run(engine, prompt, count, settings=None, lookup=None):
    return [token for (token,) in generate_tokens(engine, [prompt], count, settings, proposer=lookup)]


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
@pytest.mark.parametrize(("level", "precision"), ENGINES)
@pytest.mark.parametrize("settings", [SamplingSettings(), SamplingSettings(0.7, 5, 0.9, 1.1, seed=3)])
def test_tokens_are_those_of_plain_decoding(name, level, precision, settings):
    engine = make_engine(filled_decoder(spec_of(name)), level, precision=precision)
    plain = run(engine, LOOP, 40, settings)
    lookup = PromptLookup()
    assert run(engine, LOOP, 40, settings, lookup) == plain
    assert 0 <= lookup.accepted <= lookup.proposed
    assert settings.temperature > 0 or lookup.passes > 0  # a greedy tiny model soon repeats itself


def test_a_loop_needs_few_passes():
    """Tokens 0, 1, 2, 0, 1, 2, ...: nearly every proposal is right."""
    engine, lookup = Cycle(3), PromptLookup()
    assert run(engine, [0, 1, 2, 0, 1], 30, lookup=lookup) == [(2 + i) % 3 for i in range(30)]
    assert lookup.accepted == lookup.proposed > 20
    assert engine.calls < 8
    assert engine.position == 5 + 30 - 1  # the last token is never fed back


class Cycle(ToyEngine):
    """Its next token is always the last one plus one, modulo ``period``; ``calls`` counts what comes after the prompt."""

    def __init__(self, period):
        super().__init__(lambda tokens: (tokens[-1] + 1) % period, dataclasses.replace(spec_of("gpt2"), vocab_size=8))
        self.calls = self.position = 0

    def _step(self, sequences, tokens):
        self.calls += 1
        return super()._step(sequences, tokens)

    def _several(self, sequence, tokens, last):
        self.calls += 1
        return super()._several(sequence, tokens, last)

    def close(self, *sequences):
        self.position = sequences[0].length
        super().close(*sequences)


def test_it_switches_itself_off_when_passes_cost_more_than_they_give():
    lookup = PromptLookup()
    lookup.extend([1, 2, 3] * 4)
    assert lookup.propose(5) == []  # what a plain step costs is not known yet
    lookup.plain_step(0.010)
    for trial in range(4):
        assert lookup.propose(5) == [1, 2, 3, 1, 2], trial
        lookup.verified_step(0.015, 5, 0)
        lookup.extend([1, 2, 3])
    assert lookup.propose(5) == [] and lookup.pauses == 1
    lookup.extend([1, 2, 3] * 5)
    assert lookup.propose(5) != []  # tries again after a while
    for _ in range(4):
        lookup.verified_step(0.015, 5, 0)
    assert lookup.pauses == 2
    lookup.extend([1, 2, 3] * 6)
    assert lookup.propose(5) == []  # and then waits longer
    paying = PromptLookup()
    paying.extend([1, 2, 3] * 4)
    paying.plain_step(0.010)
    for _ in range(20):
        paying.verified_step(0.015, 5, 1)  # two tokens for the price of one and a half
    assert paying.pauses == 0 and paying.propose(2) == [1, 2]


def test_longest_and_latest_match_is_proposed():
    lookup = PromptLookup()
    lookup.plain_step(1.0)
    lookup.extend([1, 2, 3, 4, 5, 6, 9, 3, 4, 7, 8, 2, 3, 4])
    assert lookup.propose(3) == [5, 6, 9]  # 2 3 4 has been there once
    lookup.extend([1, 3, 4])
    assert lookup.propose(2) == [1, 3]  # 3 4 was last followed by the end of the first text
    lookup.extend([0])
    assert lookup.propose(2) == []
    assert lookup.propose(0) == []


def test_sampled_distribution_is_the_models_own():
    """Three tokens of a vocabulary of three, with proposals verified, are counted against exact products."""
    spec = unequal_spec()
    engine = make_engine(filled_decoder(dataclasses.replace(spec, vocab_size=3)), 2, threads=1)
    prompt, settings = [0, 0, 1, 0, 2, 1, 1, 2, 2, 0], SamplingSettings(temperature=4.0)
    # every pair of tokens is in the prompt, so that there is always a proposal
    n, expected, counts = 500, np.zeros((3, 3, 3)), np.zeros((3, 3, 3))
    first = token_probabilities(engine.prefill([prompt], 4)[0], settings)
    for a in range(3):
        second = token_probabilities(engine.prefill([[*prompt, a]], 4)[0], settings)
        for b in range(3):
            third = token_probabilities(engine.prefill([[*prompt, a, b]], 4)[0], settings)
            expected[a, b] = first[a] * second[b] * third * n
    accepted = proposed = 0
    for seed in range(n):
        lookup = PromptLookup()
        lookup.plain_step(1e9)  # a plain step is dear, so that proposals are made from the first token on
        found = run(engine, prompt, 3, dataclasses.replace(settings, seed=seed), lookup)
        counts[tuple(found)] += 1
        accepted, proposed = accepted + lookup.accepted, proposed + lookup.proposed
    assert n / 10 < accepted < proposed - n / 10  # both ends of the rule were at work
    assert expected.min() > 2
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 55.5  # 26 degrees of freedom: above it once in a thousand


def test_what_lookup_can_not_do_is_refused():
    engine = make_engine(filled_decoder(spec_of("gpt2")), 1)
    with pytest.raises(InputError, match="one prompt"):
        list(generate_tokens(engine, [[1], [2]], 4, proposer=PromptLookup()))
    bare = ToyEngine(lambda tokens: 0, spec_of("gpt2"), name="bare", supports=())
    with pytest.raises(InputError, match="bare can't verify several tokens at once; leave out the lookup"):
        list(generate_tokens(bare, [[1]], 4, proposer=PromptLookup()))


def test_lookup_goes_on_with_another_text():
    """A second text is the continuation of the first, whose words may come again."""
    engine, lookup = Cycle(3), PromptLookup()
    assert run(engine, [0, 1, 2, 0, 1], 12, lookup=lookup) == [(2 + i) % 3 for i in range(12)]
    assert run(engine, [2, 0, 1], 12, lookup=lookup) == [(2 + i) % 3 for i in range(12)]
