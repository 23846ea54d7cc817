"""Drafts by a cheaper engine: the same tokens as without it, by fewer passes, and off when it does not pay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import spec_of
from helpers import ToyEngine, filled_decoder, some_order

from sentinel.adapt.pruning.compact import compact
from sentinel.adapt.pruning.prune import make_elastic
from sentinel.errors import InputError
from sentinel.formats.sources import load
from sentinel.infer.draft import Draft
from sentinel.infer.draft_choice import DraftChoice
from sentinel.infer.generate import generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.infer.sampling import SamplingSettings
from sentinel.measure.runner import run_suites

SAMPLED = SamplingSettings(0.7, 5, 0.9, 1.1, seed=3)


def elastic_decoder():
    """A decoder with a stored width, half of the heads and a quarter of the neurons left out."""
    dense = filled_decoder(spec_of("gpt2"))
    order = some_order(dense.spec)
    plan = order.plan(0.5, 0.25)
    return make_elastic(dense, order, [plan], [compact(dense, plan)])


def run(engine, prompt, count, settings=None, proposer=None):
    return [token for (token,) in generate_tokens(engine, [prompt], count, settings, proposer=proposer)]


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
@pytest.mark.parametrize(
    ("level", "precision", "draft"),
    [(1, None, "int8"), (2, None, "int8"), (2, None, "int4"), (3, "int8", "int4"), (0, None, "int8")],
)
@pytest.mark.parametrize("settings", [SamplingSettings(), SAMPLED])
def test_tokens_are_those_of_plain_decoding(name, level, precision, draft, settings):
    decoder = filled_decoder(spec_of(name))
    plain = make_engine(decoder, level, precision=precision)
    drafting = make_engine(decoder, level, precision=precision, draft=draft)
    assert drafting.draft is not None
    for prompt in ([5, 6, 7, 8, 9], [3], [1, 2] * 9):
        proposer = Draft(drafting.draft)
        assert run(drafting, prompt, 30, settings, proposer) == run(plain, prompt, 30, settings)
        assert 0 < proposer.accepted <= proposer.proposed
        assert proposer.passes < 30
    assert run(drafting, [4, 5], 12, settings) == run(plain, [4, 5], 12, settings)  # its own draft by default


def test_two_hundred_prompts_say_what_they_say_without_a_draft():
    """Greedy and sampled, of lengths 1 to 20; the model and its draft stay open throughout."""
    decoder, rng = filled_decoder(spec_of("llama-grouped")), np.random.default_rng(0)
    plain, drafting = make_engine(decoder, 2), make_engine(decoder, 2, draft="int8")
    for number in range(200):
        prompt = rng.integers(0, decoder.spec.vocab_size, 1 + number % 20).tolist()
        settings = SamplingSettings(temperature=0.8 * (number % 2), seed=number)
        assert run(drafting, prompt, 10, settings) == run(plain, prompt, 10, settings), number
    assert drafting.draft is not None and not drafting.draft._open and not drafting._open
    drafting.release()
    assert drafting.memory().kv == drafting.draft.memory().kv == 0
    assert run(drafting, [1, 2, 3], 10) == run(plain, [1, 2, 3], 10)


@pytest.mark.parametrize(("level", "precision"), [(1, None), (2, None), (3, "int8")])
def test_a_stored_width_drafts_for_the_whole(level, precision):
    decoder = elastic_decoder()
    plain = make_engine(decoder, level, precision=precision)
    expected = run(plain, [5, 6, 7], 24)
    drafting = make_engine(decoder, level, precision=precision, draft="0.5/0.25")
    proposer = Draft(drafting.draft)
    assert run(drafting, [5, 6, 7], 24, None, proposer) == expected
    assert proposer.proposed > 0
    assert drafting.draft.spec_in_use.n_head_total < plain.spec_in_use.n_head_total
    assert decoder.current is None  # the decoder is as it was
    if level > 1:
        assert drafting.draft.packed is drafting.packed  # the same weights, not a copy


class Chooses(ToyEngine):
    """Says ``answer`` of the tokens so far; ``read`` counts the tokens that it was given."""

    def __init__(self, answer):
        super().__init__(answer, dataclasses.replace(spec_of("gpt2"), vocab_size=8))
        self.read = 0

    def _read(self, sequence, tokens, last):
        self.read += len(tokens)
        return super()._read(sequence, tokens, last)


def follow(tokens):
    return (tokens[-1] + 1) % 7


def mistaken(tokens):
    """Wrong after every 5."""
    return 0 if tokens[-1] == 5 else follow(tokens)


def test_the_draft_goes_on_from_what_was_accepted():
    """Every token is read once by the draft, but for those that it was wrong about."""
    target, cheap = Chooses(follow), Chooses(mistaken)
    target.draft = cheap
    proposer = Draft(cheap)
    assert run(target, [0, 1], 50, None, proposer) == [(2 + i) % 7 for i in range(50)]
    wrong = proposer.proposed - proposer.accepted
    assert 0 < proposer.accepted < proposer.proposed
    assert cheap.read <= 2 + 50 + wrong
    assert not cheap._open and not target._open


def test_more_is_proposed_when_it_is_right_and_nothing_when_it_does_not_pay():
    cheap, dear = 0.001, 0.010
    good, bad = Draft(Chooses(follow)), Draft(Chooses(follow))
    for draft in (good, bad):
        draft.begin([0, 1], 60)
        draft.plain_step(dear)
        draft._drafted.add(cheap * 4, 4)
    for _ in range(12):
        good.verified_step(dear * 1.2, 4, 4)
        bad.verified_step(dear * 1.2, 4, 0)
    assert good.best_count() > 4 > bad.best_count()
    assert good.pauses == 0 < bad.pauses
    assert bad.propose(5) == [] and good.propose(5) == [2, 3, 4, 5, 6]
    assert "0 of 48 proposed tokens were right" in bad.report and "did not pay, and paused" in bad.report


def test_what_is_no_draft_is_refused():
    decoder = elastic_decoder()
    for text in ("int2", "0", "1.0", "-0.5", "x/y", "0.5/2", "nan"):
        with pytest.raises(InputError, match="a draft is int8, int4, or a stored width"):
            DraftChoice.parse(text)
    with pytest.raises(InputError, match="in int8 is no cheaper than the model in int8"):
        make_engine(decoder, 3, draft="int8")
    with pytest.raises(InputError, match="in int8 is no cheaper than the model in int4"):
        make_engine(decoder, 3, precision="int4", draft="int8")
    with pytest.raises(InputError, match=r"0\.3"):
        make_engine(decoder, 2, draft="0.3")
    assert decoder.current is None
    decoder.set_width(0.5, 0.25)
    with pytest.raises(InputError, match=r"no narrower than the model's, 0\.5/0\.25"):
        make_engine(decoder, 2, draft="0.5/0.25")
    engine = make_engine(filled_decoder(spec_of("gpt2")), 2, draft="int8")
    with pytest.raises(InputError, match="draft by level 3 int8 takes one prompt at a time"):
        list(generate_tokens(engine, [[1], [2]], 4, proposer=Draft(engine.draft)))
    assert len(list(generate_tokens(engine, [[1], [2]], 4))) == 4  # a batch goes on without it


def test_the_suite_measures_drafts_beside_the_level_alone(worded, letters):
    loaded = load(worded)
    asked = {"prompt_tokens": 6, "new_tokens": 12, "rounds": 3, "drafts": ("int8", "lookup"), "text": letters["test"]}
    found = run_suites(loaded, {"draft": asked}, source=worded, threads=1).results
    assert [row.engine for row in found] == ["hf-generate", "level 2", "level 2, draft int8", "level 2, lookup"]
    assert all(row.same_tokens_as_reference and row.tokens_per_s > 0 for row in found)
    assert found[0].acceptance is None and found[1].acceptance is None
    assert 0.5 < found[2].acceptance <= 1.0
    with pytest.raises(
        InputError, match="random weights, so the share of tokens that are proposed rightly would mean nothing"
    ):
        run_suites(load("gpt2", random_weights=0), {"draft": {}}, source="gpt2")
