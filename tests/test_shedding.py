"""Shedding: which width is in force, and that text is that of the width which made it."""

from __future__ import annotations

from itertools import groupby

import pytest
from batches import PROMPTS, alone, ask, heard
from conftest import spec_of
from helpers import character_tokenizer, filled_decoder

from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.errors import InputError
from sentinel.infer import batching
from sentinel.infer.batch_request import Request
from sentinel.infer.batching import Batcher
from sentinel.infer.opening import make_engine, narrower_engine
from sentinel.infer.shedding import CALM_S, SETTLE_S, LoadRule, Shedding, widths_to_shed

RATIOS = [(0.5, 0.0), (0.5, 0.5)]


@pytest.fixture(scope="module")
def elastic_decoder():
    dense = expand_kv(filled_decoder(spec_of("llama-grouped")))
    pruner = Pruner(dense, PruningSettings("random", compensate=False, seed=4), None)
    order = pruner.order(0.5, 0.5)
    plans = [order.plan(*ratios) for ratios in RATIOS]
    return make_elastic(dense, order, plans, pruner.apply(plans))


class Script:
    """A rule that goes through these widths, so many rounds each."""

    def __init__(self, *widths: int, rounds: int) -> None:
        self.widths, self.rounds, self.seen = widths, rounds, 0

    def saw_round(self, seconds: float) -> None:
        self.seen += 1

    def look(self, waited_s: float, n_answer: int) -> int:
        return self.widths[min(self.seen // self.rounds, len(self.widths) - 1)]


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("piece", [5, 128])
def test_text_after_a_switch_is_that_of_a_fresh_engine_at_the_width(level, piece, elastic_decoder, monkeypatch):
    monkeypatch.setattr(batching, "PIECE", piece)
    monkeypatch.setattr(batching, "PAYS", 100)  # also answers that are nearly done
    monkeypatch.setattr(Shedding, "rule", lambda self: Script(0, 2, 1, 0, 2, rounds=12))
    engine = make_engine(elastic_decoder, level)
    engines = {"0": engine, **{str(r): narrower_engine(elastic_decoder, engine, *r) for r in RATIOS}}
    shedding = Shedding("0", {name: its for name, its in engines.items() if name != "0"})
    requests = [Request(prompt, 64 - len(prompt)) for prompt in PROMPTS]
    with Batcher(engine, character_tokenizer(), max_batch=4, shedding=shedding) as batcher:
        found = [list(events) for events in [ask(batcher, request) for request in requests]]
    made = set()
    for request, events in zip(requests, found, strict=True):
        text = list(request.prompt)
        for width, part in groupby(events, key=lambda event: event.width):
            tokens = [event.token for event in part]
            assert tokens == alone(engines[width], Request(text, len(tokens)))
            text += tokens
            made.add(width)
        assert len(text) == 64
    assert made == set(engines)  # all widths were in use
    assert any(len({event.width for event in events}) > 1 for events in found)  # within one answer too
    assert not any(its._open for its in engines.values())


def test_an_answer_that_is_nearly_done_stays_where_it_is(elastic_decoder, monkeypatch):
    monkeypatch.setattr(Shedding, "rule", lambda self: Script(0, 1, rounds=2))
    engine = make_engine(elastic_decoder, 2)
    shedding = Shedding("0", {"0.5": narrower_engine(elastic_decoder, engine, 0.5, 0.0)})
    with Batcher(engine, character_tokenizer(), shedding=shedding) as batcher:
        events = list(ask(batcher, Request(PROMPTS[6], 8)))
        assert {event.width for event in events} == {"0"} and batcher.width == "0.5"
        assert {event.width for event in ask(batcher, Request(PROMPTS[6], 8))} == {"0.5"}
    with Batcher(engine, character_tokenizer()) as batcher:
        assert heard(ask(batcher, Request(PROMPTS[6], 8)))[2].width == ""


def test_the_rule_goes_down_step_by_step_and_back_only_after_calm():
    now = 0.0
    rule = LoadRule(2, wait_s=0.5, tpot_s=0.1, clock=lambda: now)
    assert [rule.look(0.5, 1), rule.look(0.51, 1), rule.look(9, 1)] == [0, 1, 1]  # the second step has to wait
    now += SETTLE_S
    assert [rule.look(0.51, 1), rule.look(9, 1)] == [2, 2]
    now += 100
    assert rule.look(0.3, 1) == 2  # more than half of the target: neither load nor calm
    now += CALM_S - 0.1
    assert rule.look(0, 1) == 2
    now += 0.2
    assert [rule.look(0, 1), rule.look(0, 1)] == [1, 1]
    now += CALM_S
    assert rule.look(0, 1) == 0
    rule.saw_round(0.11)
    assert rule.look(0, 1) == 1  # by the time per token alone
    rule.saw_round(0.06)
    now += 2 * CALM_S
    assert rule.look(0, 1) == 1
    now += CALM_S
    assert rule.look(0, 0) == 0  # nobody is served any more: what the last ones saw is no load


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["half"], "not 'half'"),
        (["0.5/0.2", "0.3/0.2"], "0.3/0.2 to shed is not narrower than 0.5/0.2"),
        (["0.2"], "than 0.2/0.1"),
    ],
)
def test_widths_that_are_none_or_not_narrower_are_refused(names, said):
    with pytest.raises(InputError, match=said):
        widths_to_shed(names, 0.2, 0.1)
    assert widths_to_shed(["0.2/0.2", " 0.5/0.2"], 0.2, 0.1) == [(0.2, 0.2), (0.5, 0.2)]
    with pytest.raises(InputError, match="above 0 s"):
        Shedding("0", {}, wait_s=0)
