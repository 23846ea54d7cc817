"""Which tokens may be drawn: min-p, penalties of what was generated, biases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel.errors import InputError
from sentinel.infer.sampling import Sampler, SamplingSettings, token_probabilities

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))


def test_min_p_keeps_a_share_of_the_likeliest():
    found = token_probabilities(LOGITS, SamplingSettings(temperature=1.0, min_p=0.29))
    assert found == pytest.approx(np.array([0.5, 0.25, 0.15, 0, 0]) / 0.9)
    assert token_probabilities(LOGITS, SamplingSettings(temperature=1.0, min_p=1.0))[0] == 1


@given(st.integers(0, 10_000), st.floats(0.01, 0.999))
def test_a_nucleus_is_the_fewest_tokens_of_that_mass(seed, top_p):
    logits = np.random.default_rng(seed).normal(0, 3, 200).astype(np.float32)
    whole = token_probabilities(logits, SamplingSettings(temperature=1.0))
    found = token_probabilities(logits, SamplingSettings(temperature=1.0, top_p=top_p))
    order = np.argsort(-whole, kind="stable")
    count = 1 + int(np.searchsorted(np.cumsum(whole[order]), top_p - 1e-12))
    assert set(np.flatnonzero(found)) == set(order[:count])
    assert found.sum() == pytest.approx(1)


def test_penalties_count_what_was_generated_and_not_the_prompt():
    logits = np.array([[3.0, 2.5, 2.0, 1.0]], np.float32)

    def chosen(**options: float) -> list[int]:
        sampler, history = Sampler(SamplingSettings(**options), 1), [[0, 0, 0]]
        for _ in range(6):
            history[0] += sampler(logits, history)
        return history[0][3:]

    assert chosen() == [0] * 6
    assert chosen(presence_penalty=0.7) == [0, 1, 0, 0, 0, 0]
    assert chosen(frequency_penalty=0.7) == [0, 1, 0, 2, 1, 0]
    assert chosen(presence_penalty=-1.0) == [0] * 6


def test_biases_are_added_and_a_copy_remembers_the_prompt():
    logits = np.array([[3.0, 2.5, 2.0, 1.0]], np.float32)
    assert Sampler(SamplingSettings(logit_bias=((0, -100), (3, 2.0))), 1)(logits, [[1]]) == [3]
    sampler = Sampler(SamplingSettings(presence_penalty=9), 1)
    assert sampler(logits, [[1]]) == [0]
    assert sampler.copy()(logits, [[1, 0]]) == sampler(logits, [[1, 0]]) == [1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_p": 1.5},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"logit_bias": ((-1, 1),)},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError):
        SamplingSettings(**wrong)


@pytest.mark.parametrize("penalty", [5e-324, 1e-40, 1e-3, 10.0])
def test_any_repetition_penalty_leaves_probabilities(penalty):
    logits = np.array([3.0, -2.0, 0.0, 8.0], np.float32)
    settings = SamplingSettings(temperature=1.0, repetition_penalty=penalty, seed=1)
    (token,) = Sampler(settings, 1)(logits[None], [[0, 1, 2]])
    assert token == (3 if penalty > 1 else 0)
