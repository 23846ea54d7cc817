"""Continuous batching: answers are those of a prompt alone, and requests come, go, wait and fail each by itself."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from batches import HANG, PROMPTS, alone, ask, heard, until
from conftest import spec_of
from helpers import ToyEngine, character_tokenizer, filled_decoder

from sentinel.errors import InputError
from sentinel.infer import batching
from sentinel.infer.batch_request import Events, Finish, QueueFullError, Request, ShuttingDownError
from sentinel.infer.batching import Batcher
from sentinel.infer.generate import generate_text
from sentinel.infer.opening import make_engine
from sentinel.infer.sampling import SamplingSettings, token_chance

SPEC = spec_of("llama-grouped")


class Gate:
    """A toy engine whose every pass waits for leave; it counts upwards."""

    def __init__(self) -> None:
        self.leave = threading.Semaphore(0)
        self.passes = 0
        self.engine = ToyEngine(self._next, SPEC)

    def _next(self, tokens: list[int]) -> int:
        assert self.leave.acquire(timeout=HANG)
        self.passes += 1
        return (tokens[-1] + 1) % 97


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("piece", [4, 128])
def test_answers_are_those_of_each_prompt_alone(level, piece, monkeypatch):
    monkeypatch.setattr(batching, "PIECE", piece)
    engine = make_engine(filled_decoder(SPEC), level)
    drawn = SamplingSettings(temperature=0.9, top_p=0.9, seed=5, presence_penalty=0.5, frequency_penalty=0.2)
    requests = [Request(p, 12 + i, drawn if i % 3 == 2 else SamplingSettings()) for i, p in enumerate(PROMPTS)]
    expected = [alone(engine, request) for request in requests]
    with Batcher(engine, character_tokenizer(), max_batch=4) as batcher:
        found = [heard(events) for events in [ask(batcher, request) for request in requests]]
        assert batcher.idle
        assert len(engine._open) == len(batcher.caches[0])
    assert [tokens for tokens, _, _ in found] == expected
    assert all(last.finish is Finish.LENGTH for _, _, last in found)
    assert not engine._open


def test_an_answer_ends_before_a_stop_string_and_at_an_end_token():
    engine, tokenizer = make_engine(filled_decoder(SPEC), 2), character_tokenizer()
    prompt = PROMPTS[3]
    whole = alone(engine, Request(prompt, 20))
    text = generate_text(engine, tokenizer, prompt, 20)
    stop = text[6:9]
    with Batcher(engine, tokenizer) as batcher:
        _, cut, last = heard(ask(batcher, Request(prompt, 20, stop=(stop, "never there"))))
        ended, _, end = heard(ask(batcher, Request(prompt, 20, eos_ids=(whole[4],))))
        _, plain, _ = heard(ask(batcher, Request(prompt, 20)))
    assert (cut, last.finish) == (text[: text.find(stop)], Finish.STOP)
    assert (ended, end.finish) == (whole[: whole.index(whole[4]) + 1], Finish.STOP)
    assert plain == text


def test_chances_are_the_models_own():
    engine = make_engine(filled_decoder(SPEC), 2)
    logits = engine.score(PROMPTS[2])[-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    banned = SamplingSettings(logit_bias=((int(np.argmax(logits)), -100.0),))
    with Batcher(engine, character_tokenizer()) as batcher:
        (event,) = ask(batcher, Request(PROMPTS[2], 1, banned, n_likeliest=3))
    assert event.token == int(np.argsort(-expected)[1])
    assert event.chance is not None
    assert event.chance.log_probability == pytest.approx(expected[event.token], abs=1e-6)
    assert [token for token, _ in event.chance.likeliest] == np.argsort(-expected)[:3].tolist()
    assert token_chance(logits.astype(np.float32), 0, 0).likeliest == ()


def test_a_cancelled_answer_is_not_a_token_longer_and_frees_its_place():
    gate = Gate()
    with Batcher(gate.engine, character_tokenizer(), max_batch=1) as batcher:
        first, second = Events(), Events()
        ticket = batcher.submit(Request([1], 50), first.tell)
        waiting = batcher.submit(Request([1], 50), Events().tell)
        batcher.submit(Request([40], 2), second.tell)
        gate.leave.release(3)
        until(lambda: gate.passes == 3)
        ticket.cancel()
        waiting.cancel()
        gate.leave.release(1)  # the pass under way
        tokens, _, last = heard(first)
        assert last.finish is Finish.CANCELLED and len(tokens) <= 4
        gate.leave.release(10)
        assert heard(second)[0] == [41, 42]
        assert gate.passes <= 6
        until(lambda: batcher.idle)
    assert not gate.engine._open


def test_a_long_prompt_is_read_between_the_tokens_of_others(monkeypatch):
    monkeypatch.setattr(batching, "PIECE", 4)
    gate, order = Gate(), list[str]()
    with Batcher(gate.engine, character_tokenizer(), max_batch=3) as batcher:
        batcher.submit(Request([1], 30), lambda event: order.append("running"))
        gate.leave.release(2)
        until(lambda: len(order) == 2)
        done = Events()
        batcher.submit(Request([5] * 24, 1), lambda event: order.append("long") or done.tell(event))
        batcher.submit(Request([5, 6], 1), lambda event: order.append("short"))
        gate.leave.release(100)
        heard(done)
        until(lambda: batcher.idle)
    assert order.index("short") < order.index("long")  # prompts take turns
    assert order[: order.index("long")].count("running") >= 2 + 5


def test_a_full_queue_and_a_closed_one_are_told_apart():
    gate = Gate()
    batcher = Batcher(gate.engine, character_tokenizer(), max_batch=1, max_queue=2)
    running, waiting = ask(batcher, Request([1], 9)), Events()
    until(lambda: batcher.n_active == 1)
    batcher.submit(Request([1], 9), waiting.tell)
    with pytest.raises(QueueFullError, match="1 requests wait, of at most 2"):
        batcher.submit_all([(Request([1], 9), waiting.tell)] * 2)
    assert batcher.n_waiting == 1
    batcher.refuse()
    with pytest.raises(ShuttingDownError):
        batcher.submit(Request([1], 9), waiting.tell)
    gate.leave.release(2)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.leave.release(40)
    closing.join(HANG)
    assert not closing.is_alive()
    assert heard(waiting)[2].finish in (Finish.SHUTDOWN, Finish.LENGTH)
    assert heard(running)[2].finish in (Finish.SHUTDOWN, Finish.LENGTH)


def test_what_fails_fails_alone():
    engine = ToyEngine(lambda tokens: 1 / 0 if tokens[-1] == 13 else tokens[-1] + 1, SPEC)  # pyright: ignore
    with Batcher(engine, character_tokenizer()) as batcher:
        for refused in (Request([], 1), Request([1], 64), Request([97], 1), Request([1], 1, stop=("",))):
            with pytest.raises(InputError):
                batcher.submit(refused, Events().tell)
        with pytest.raises(InputError, match="logit bias names token 97"):
            batcher.submit(Request([1], 1, SamplingSettings(logit_bias=((97, 1.0),))), Events().tell)
        _, _, last = heard(ask(batcher, Request([11], 9)))
        assert last.finish is Finish.ERROR and "division by zero" in last.message
        assert heard(ask(batcher, Request([30], 2)))[0] == [31, 32]
    assert not engine._open
    with pytest.raises(InputError, match="at most 32 sequences"):
        Batcher(make_engine(filled_decoder(SPEC), 2), character_tokenizer(), max_batch=33)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_prompt_that_begins_as_an_earlier_one_is_read_from_there(level):
    engine = make_engine(filled_decoder(SPEC), level)
    shared = PROMPTS[6][:25]
    prompts = [[*shared, 1, 2], [*shared, 3], [*shared, 1, 2, 4, 5], shared, [*shared[:20], *[9] * 9]]
    expected = [alone(engine, Request(prompt, 10)) for prompt in prompts]
    with Batcher(engine, character_tokenizer(), max_batch=3) as batcher:
        assert [heard(ask(batcher, Request(prompt, 10)))[0] for prompt in prompts] == expected
        assert batcher.caches[0].n_reused >= 25 + 25 + 24 + 20
        again = heard(ask(batcher, Request(prompts[0] + expected[0][:5], 5)))[0]  # the next turn of a chat
        assert again == expected[0][5:]
    assert not engine._open


def test_what_was_not_used_for_longest_goes_first_and_bytes_are_bounded():
    engine = make_engine(filled_decoder(SPEC), 2)
    size = engine.spec.kv_bytes_read(32, engine.kv_bytes)
    texts = [[number] * 30 for number in (1, 2, 3)]
    with Batcher(engine, character_tokenizer(), cache_mb=2.5 * size / 1e6) as batcher:

        def reused(number: int) -> int:
            before = batcher.caches[0].n_reused
            heard(ask(batcher, Request([*texts[number], 50 + batcher.caches[0].n_reused % 40], 2)))
            assert batcher.caches[0].n_byte <= 2.5 * size and len(batcher.caches[0]) <= 2
            return batcher.caches[0].n_reused - before

        assert [reused(number) for number in (0, 1, 0, 2, 1)] == [0, 0, 30, 0, 0]
    with Batcher(engine, character_tokenizer(), cache_mb=0) as batcher:
        assert [heard(ask(batcher, Request(texts[0], 2)))[2].finish for _ in range(2)] == [Finish.LENGTH] * 2
        assert (batcher.caches[0].n_reused, len(batcher.caches[0])) == (0, 0) and not engine._open
