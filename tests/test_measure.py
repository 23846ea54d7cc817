"""Perplexity, agreement, variety of text, latency tables, the quality suite, targets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import spec_of
from helpers import character_tokenizer, filled_decoder

from sentinel.adapt.pruning.criteria import criterion_named
from sentinel.adapt.pruning.subject import Subject
from sentinel.adapt.text.corpora import Document, Text, Windows
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer.opening import make_engine
from sentinel.measure import decode_speed
from sentinel.measure.decode_speed import NEW_TOKENS, measure_plan_cost
from sentinel.measure.judge import Judge
from sentinel.measure.latency import measure_latencies
from sentinel.measure.perplexity import FEWEST, evaluate, passages, perplexity_ratio
from sentinel.measure.suites.engines import Engines
from sentinel.measure.suites.quality import judge_criteria
from sentinel.measure.suites.request import Request, SuiteSettings
from sentinel.measure.text_metrics import distinct, repetition
from sentinel.models.record import Record
from sentinel.models.width import Width


@pytest.fixture(scope="module")
def model():
    return filled_decoder(spec_of("gpt2"))


def text_of(*lengths: int) -> Text:
    rng = np.random.default_rng(0)
    documents = [Document(str(n), "".join(chr(97 + c) for c in rng.integers(0, 26, n))) for n in lengths]
    return Text("t", tuple(documents))


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 15), (10, 3), (64, 32)])
def test_every_token_is_predicted_once_with_its_context(model, context, stride):
    texts = [text_of(41, 7, 64)]
    found = evaluate(model, character_tokenizer(), texts, context=context, stride=stride)
    total, count = 0.0, 0
    for document in texts[0].documents:
        ids = character_tokenizer().encode(document.text)
        end = min(context, len(ids))
        done = 1
        while done < len(ids):
            window = torch.tensor(ids[max(0, end - context) : end])[None]
            with torch.no_grad():
                logp = model(window)[0].log_softmax(-1)
            for position in range(done, end):
                total -= logp[position - 1 - max(0, end - context), ids[position]].item()
                count += 1
            done, end = end, min(end + stride, len(ids))
    assert found.tokens == count == 40 + 6 + 63
    assert found.nll == pytest.approx(total / count, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(total / count / math.log(2), rel=1e-5)  # one byte per token here
    assert (found.perplexity_stderr or 0) > 0 or len(found.windows) < FEWEST


def test_compiled_engines_score_like_the_decoder(model):
    texts = [text_of(50, 64)]
    plain = evaluate(model, character_tokenizer(), texts, context=32, stride=16)
    level2, level3 = (
        evaluate(make_engine(model, n), character_tokenizer(), texts, context=32, stride=16) for n in (2, 3)
    )
    assert level2.nll == pytest.approx(plain.nll, rel=1e-5)
    assert level3.nll != plain.nll and level3.nll == pytest.approx(plain.nll, rel=0.02)


def test_agreement_with_a_teacher(model):
    texts = [text_of(50)]
    same = evaluate(model, character_tokenizer(), texts, context=32, teacher=model)
    assert same.kl == pytest.approx(0, abs=1e-6) and same.top1_agreement == 1.0
    other = evaluate(model, character_tokenizer(), texts, context=32, teacher=filled_decoder(spec_of("gpt2"), seed=5))
    assert other.kl > 0.01 and other.top1_agreement < 1.0


@pytest.mark.parametrize("wanted", [1, 10, 47, 100, 146, 1000])
def test_fewer_tokens_are_taken_evenly_from_all_documents(wanted):
    texts = [text_of(60, 50, 40)]
    every = passages(texts, character_tokenizer(), 16, 8, None)
    chosen = passages(texts, character_tokenizer(), 16, 8, wanted)
    covered = sum(p.sizes.sum() for p in chosen)  # bytes: one per token here
    assert sum(p.scored for p in chosen) == covered == min(wanted, 59 + 49 + 39)
    places = [next(i for i, p in enumerate(every) if p.tokens.tolist()[:8] == c.tokens.tolist()[:8]) for c in chosen]
    assert places == sorted(set(places))
    if len(chosen) > 2:
        gaps = np.diff([-1, *places, len(every)])
        assert gaps.max() - gaps[1:-1].min() <= len(every) / len(chosen) + 1


def test_ratio_to_the_dense_model_and_its_error_are_of_paired_windows(model):
    texts = [text_of(64, 60), text_of(140)]
    other = filled_decoder(spec_of("gpt2"), seed=5)
    dense, found = (
        [evaluate(m, character_tokenizer(), [t], context=16, stride=15) for t in texts] for m in (model, other)
    )
    ratio, error = perplexity_ratio(found, dense)
    assert ratio == pytest.approx(math.exp(np.mean([f.nll - d.nll for f, d in zip(found, dense, strict=True)])))
    assert error > 0 and perplexity_ratio(dense, dense) == (1.0, None)  # equal models leave nothing uncertain
    judged = Judge(model, character_tokenizer(), texts, Record(), tokens_per_text=None, context=16)(other)
    assert judged["perplexity_ratio"] == pytest.approx(ratio)
    assert judged["perplexity_ratio_stderr"] == pytest.approx(error)
    assert judged["tokens"] == 63 + 59 + 139


def test_limits_of_evaluation(model):
    assert evaluate(model, character_tokenizer(), [text_of(60, 60, 60)], context=32, max_tokens=70).tokens == 70
    for options, said in (({"context": 100}, "context"), ({"context": 16, "stride": 16}, "stride")):
        with pytest.raises(InputError, match=said):
            evaluate(model, character_tokenizer(), [text_of(60)], **options)
    with pytest.raises(InputError, match="too short"):
        evaluate(model, character_tokenizer(), [text_of(1)], context=16)
    broken = filled_decoder(spec_of("gpt2"))
    with torch.no_grad():
        broken.embed.weight[97 - 1 - 20] = float("nan")
        broken.final_norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        evaluate(broken, character_tokenizer(), [text_of(60)], context=32)


def test_variety_counts():
    assert distinct([[1, 2, 1, 2], [1, 2]], 1) == pytest.approx(2 / 6)
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)
    assert repetition([[1, 2, 1, 3]]) == pytest.approx(1 / 4)
    assert repetition([[1, *range(100, 133), 1]]) == 0.0
    assert distinct([], 1) == repetition([]) == 0.0


def test_latency_table_adds_up_and_does_not_change_the_model(model):
    table = measure_latencies(model, context=8, rounds=2)
    layers = model.spec.layers
    assert table.predict_width(Width((4,) * 3, (192,) * 3)) == pytest.approx(table.dense_ms)
    assert table.predict_width(Width((0,) * 3, (0,) * 3)) > 0
    assert table.predict_width(Width((2,) * 3, (0,) * 3)) == pytest.approx(
        table.fixed_ms + sum(table.attention_ms[layer][2] + table.mlp_ms[layer][0] for layer in layers)
    )
    assert all(b.attn.active_groups == 4 and b.mlp.active_neurons == 192 for b in model.blocks)


def request_for(decoder, weights="real", **settings):
    loaded = LoadedModel("tiny", decoder, character_tokenizer(), Record(weights=weights))
    return Request(loaded, "tiny", None, Engines(loaded), SuiteSettings(**settings), frozenset(settings))


def test_quality_suite_rows(model):
    tokens = torch.randint(0, 97, (8, 16), generator=torch.Generator().manual_seed(0))
    settings = {"criteria": ("random", "fisher"), "heads": (0.25, 0.5), "eval_tokens": 40, "rounds": 2, "new_tokens": 2}
    windows, texts = Windows(tokens, ("a",)), [text_of(30), text_of(30, 20)]
    with pytest.raises(InputError, match="context"):  # 64 prompt tokens do not fit this model
        judge_criteria(request_for(model, **settings), windows, texts)
    wide = filled_decoder(spec_of("gpt2").__class__(**{**vars(spec_of("gpt2")), "max_seq_len": 128}))
    rows = judge_criteria(request_for(wide, **settings), windows, texts)
    level3 = [r for r in rows if r.level == 3]
    assert [(r.criterion, r.heads_pruned, r.compensated) for r in level3] == [
        (None, 0.0, None),
        ("random", 0.25, True),
        ("random", 0.5, True),
    ]
    assert all(r.precision == "int8" and r.tokens_per_s is None and r.perplexity_ratio > 0 for r in level3)
    assert level3[0].perplexity_ratio == pytest.approx(1.0, rel=0.02) and level3[0].perplexity_ratio != 1.0
    rows = [r for r in rows if r.level == 1]
    assert [r.criterion for r in rows] == [None] + ["random"] * 4 + ["fisher"] * 4
    assert rows[0].perplexity_ratio == pytest.approx(1.0)
    assert all(r.speedup_over == rows[0].engine and r.tokens_per_s > 0 for r in rows)
    assert {r.compensated for r in rows[1:]} == {True, False}
    dense = judge_criteria(request_for(wide, **{**settings, "criteria": ()}), windows, texts)
    assert [(r.engine, r.precision) for r in dense] == [("level 1, not pruned", "fp32"), ("level 3 int8", "int8")]
    assert [r.perplexity for r in dense] == [rows[0].perplexity, level3[0].perplexity]  # as in a run with criteria
    assert all(r.tokens_per_s is None and r.speedup_over is None and r.criterion is None for r in dense)
    with pytest.raises(InputError, match="random weights"):
        judge_criteria(request_for(wide, "random", **settings), windows, texts)
    with pytest.raises(InputError, match="was calibrated or trained on"):
        judge_criteria(request_for(wide, **settings), Windows(tokens, (texts[0].documents[0].fingerprint,)), texts)


def test_a_plan_costs_what_lies_between_what_was_timed(model, monkeypatch):
    """A generation that takes as long as its weights are large: every plan's cost is that of an engine of its size."""
    monkeypatch.setattr(
        decode_speed, "generate_timed", lambda engine, *_: ([], {"total_ms": float(engine.weight_bytes_per_token())})
    )
    loaded = LoadedModel("tiny", model, character_tokenizer(), Record())
    cost, whole = measure_plan_cost(loaded, model, "fp32", (0.5, 0.5))
    order = criterion_named("random").order(Subject(model), 0.5, 0.5)
    engines = Engines(loaded)
    for heads, neurons in ((0.0, 0.0), (0.25, 0.5), (0.5, 0.25), (0.75, 0.75)):
        own = engines.at(2, heads=heads, neurons=neurons).own_engine.weight_bytes_per_token() / NEW_TOKENS
        assert cost(order.plan(heads, neurons)) == pytest.approx(own, rel=0.02)
    assert whole == pytest.approx(cost(order.plan(0.0, 0.0)))
