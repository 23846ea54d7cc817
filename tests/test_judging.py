"""What is told of a text and of a measurement is true, however small or odd it is."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import spec_of
from helpers import (
    byte_tokenizer,
    filled_decoder,
    letter_tokenizer,
    refused,
    text_of,
    word_tokenizer,
)
from synthetic_results import PLACE, all_results, quality, row
from tokenizers import normalizers, processors

from sentinel.adapt.recovery.likelihood import perplexity_of
from sentinel.cli import main
from sentinel.commands.arguments import share
from sentinel.commands.compare import lines
from sentinel.commands.pruning import ratio
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.sources import load
from sentinel.infer.opening import make_engine
from sentinel.measure.compare import compare
from sentinel.measure.judge import Judge
from sentinel.measure.perplexity import FEWEST, Judged, evaluate, mean_with_error, perplexity_ratio
from sentinel.measure.results import FEWEST_ROUNDS, Result, ResultSet, speedup
from sentinel.measure.text_metrics import sample_variety
from sentinel.models.decoder import Decoder
from sentinel.models.record import Record
from sentinel.models.token_text import token_bytes
from sentinel.models.tokenizer import TextTokenizer
from sentinel.report import cells
from sentinel.report.charts import charts


def decoder_of(vocab_size: int = 257, *, config: str = "gpt2", **changes) -> Decoder:
    return filled_decoder(dataclasses.replace(spec_of(config), vocab_size=vocab_size, **changes))


# --- bits per byte --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["你好世界😀" * 6, "plain words, and an é", "a\n\nb  c\t ", "😀"])
@pytest.mark.parametrize("stride", [1, 4, 32])
def test_bits_per_byte_count_the_bytes_of_the_text_whatever_a_stride_cuts(written, stride):
    model, tokenizer = decoder_of(), byte_tokenizer()
    found = evaluate(model, tokenizer, [text_of(written)], context=64, stride=stride)
    whole = len(written.encode())
    judged = whole - sum(token_bytes(tokenizer, written)[1][:1])  # of a document the first token is not predicted
    assert found.tokens == whole - 1
    assert found.bits_per_byte == pytest.approx(found.nll * found.tokens / math.log(2) / judged)


def test_every_byte_of_a_text_belongs_to_one_token():
    for written in ("你好 a😀b", "  spaces  kept ", "é"):
        ids, sizes = token_bytes(byte_tokenizer(), written)
        assert ids == byte_tokenizer().encode(written)
        assert sizes.tolist() == pytest.approx([1.0] * len(written.encode()))
    ids, sizes = token_bytes(TextTokenizer(word_tokenizer("the", "fox"), ()), " the  fox 你好 ")
    assert ids == [1, 2, 0] and sizes.tolist() == [4, 5, 8]  # dropped spaces, and a word that is not known


def test_special_tokens_are_no_text():
    _, sizes = token_bytes(byte_tokenizer(), "ab<end>c<end>")
    assert sizes.tolist() == [1, 1, 0, 1, 0]
    begun = word_tokenizer("the", "fox", special="<s>")
    begun.post_processor = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 1)])
    ids, sizes = token_bytes(TextTokenizer(begun, ()), "the fox")
    assert ids == [1, 2, 3, 1] and sizes.tolist() == [0, 3, 4, 0]
    model = decoder_of(4)
    found = evaluate(model, TextTokenizer(begun, ()), [text_of("the fox")], context=8)
    assert found.tokens == 3  # with a token before it the first word is predicted too
    assert found.bits_per_byte == pytest.approx(found.nll * 3 / math.log(2) / 7)


def test_a_tokenizer_that_rewrites_is_judged_by_the_bytes_of_the_text_as_it_stands():
    made = word_tokenizer("cafe", "fine")
    made.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    ids, sizes = token_bytes(TextTokenizer(made, ()), "Café ﬁne")
    assert ids == [1, 2] and sizes.tolist() == [5, 6]


@pytest.mark.parametrize("written", ["<end>" * 9, "", "<end>"])
def test_a_text_without_text_is_refused_in_a_sentence(written):
    with pytest.raises(InputError, match="evaluation text is"):
        evaluate(decoder_of(), byte_tokenizer(), [text_of(written)], context=16)


# --- losses, vocabularies and contexts at their ends ----------------------------------------------------------------


def test_a_perplexity_beyond_a_float_is_infinite_and_null_in_json():
    assert perplexity_of(800.0) == math.inf and perplexity_of(1.0) == math.e
    model = decoder_of()
    wild = decoder_of()
    with torch.no_grad():
        wild.final_norm.weight.mul_(1e5)
    texts = [text_of("some text that goes on " * 20)]
    found = evaluate(wild, byte_tokenizer(), texts, context=16)
    assert found.nll > 709 and found.perplexity == math.inf and found.perplexity_stderr is None
    assert math.isfinite(found.bits_per_byte) and found.nll_stderr is not None
    judge = Judge(model, byte_tokenizer(), texts, Record(), tokens_per_text=None, context=16)
    told = judge(wild)
    assert told["perplexity"] is None and told["perplexity_ratio"] is None and told["perplexity_stderr"] is None
    assert told["nll"] == pytest.approx(found.nll, rel=0.2)
    json.dumps(told, allow_nan=False)


def test_a_token_beyond_the_vocabulary_is_refused():
    with pytest.raises(InputError, match="has only 100 tokens"):
        evaluate(decoder_of(100), byte_tokenizer(), [text_of("some words")], context=16)


@pytest.mark.parametrize("context", [2, 3, 16, 32, 33])
def test_short_contexts_are_judged_and_sampled(context):
    model = decoder_of(max_seq_len=context)
    texts = [text_of("", "The quick brown fox " * 9)]
    found = evaluate(model, byte_tokenizer(), texts)
    assert found.context == context and found.tokens == 179
    variety = sample_variety(make_engine(model, 1), byte_tokenizer(), texts)
    assert 0 < variety.distinct_1 <= 1


def test_a_tokenizer_larger_than_its_model_is_refused_before_any_work(tmp_path, capsys):
    small = dataclasses.replace(spec_of("gpt2"), vocab_size=12)
    save_checkpoint(filled_decoder(small), tmp_path / "m", letter_tokenizer(), Record())
    (tmp_path / "t.txt").write_text("a b c d e f g h " * 200)
    model, words = str(tmp_path / "m"), str(tmp_path / "t.txt")
    pruned = ["prune", model, "-o", str(tmp_path / "out"), "--heads", "0.5", "--text", words]
    for arguments in (
        ["evaluate", model, "--text", words],
        ["generate", model, "a b"],
        [*pruned, "--calibration", words],
        [*pruned, "--criterion", "magnitude", "--no-compensate"],
        ["recover", model, "-o", str(tmp_path / "out"), "--teacher", model, "--text", words, "--length", "16"],
        ["quantize", model, "-o", str(tmp_path / "out"), "--precision", "int4", "--calibration", words],
    ):
        assert "ids up to 16, but the model has only 12 tokens" in refused(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_padding_token_beyond_the_model_is_no_hindrance(tmp_path):
    """Many checkpoints have one that was added for training; no text gives it unless it is spelled out."""
    tokenizer = byte_tokenizer()
    tokenizer.fast.add_special_tokens(["<pad>"])
    save_checkpoint(decoder_of(), tmp_path / "m", tokenizer, Record())
    loaded = load(str(tmp_path / "m"))
    texts = [text_of("some words")]
    assert evaluate(loaded.decoder, loaded.require_tokenizer(), texts).tokens == 9
    with pytest.raises(InputError, match="token 257"):
        evaluate(loaded.decoder, loaded.require_tokenizer(), [text_of("some<pad>")])


# --- standard errors ------------------------------------------------------------------------------------------------


def windows_of(documents: list[int], losses: list[float]) -> list[Judged]:
    return [Judged(loss, 10, document) for document, loss in zip(documents, losses, strict=True)]


def test_no_standard_error_of_few_windows():
    losses = [float(n % 3) for n in range(FEWEST)]
    assert mean_with_error(windows_of([0] * FEWEST, losses), losses)[1] is not None
    few = losses[: FEWEST - 1]
    assert mean_with_error(windows_of([0] * len(few), few), few) == (sum(few) / 10 / len(few), None)
    model, other = decoder_of(), decoder_of(config="gpt2-relu-untied")
    short = [text_of("a few words")]
    judge = Judge(model, byte_tokenizer(), short, Record(), tokens_per_text=None, context=16)
    assert judge(other)["perplexity_stderr"] is None and judge(other)["perplexity_ratio_stderr"] is None
    assert judge(model)["perplexity_ratio"] == 1.0


def test_one_text_without_a_standard_error_leaves_the_whole_without():
    model, other = decoder_of(), filled_decoder(dataclasses.replace(spec_of("gpt2"), vocab_size=257), seed=3)
    texts = [text_of("a few words"), text_of("many more words than that " * 20)]
    found, dense = ([evaluate(m, byte_tokenizer(), [t], context=16) for t in texts] for m in (other, model))
    assert found[0].nll_stderr is None and found[1].nll_stderr is not None
    assert perplexity_ratio(found, dense)[1] is None
    judge = Judge(model, byte_tokenizer(), texts, Record(), tokens_per_text=None, context=16)
    assert judge(other)["perplexity_stderr"] is None


def test_windows_of_one_document_are_one_sample():
    """Twenty documents whose windows are all alike: the error is that of twenty numbers, however many windows there are."""
    rng = np.random.default_rng(0)
    means = rng.normal(30, 3, 20)
    documents = [d for d in range(20) for _ in range(50)]
    losses = [means[d] for d in documents]
    error = mean_with_error(windows_of(documents, losses), losses)[1]
    assert error == pytest.approx(means.std(ddof=1) / math.sqrt(20) / 10)
    few = [d % 5 for d in documents]  # too few documents to tell: windows have to do
    assert mean_with_error(windows_of(few, losses), losses)[1] == pytest.approx(error / math.sqrt(50), rel=0.05)


def test_no_interval_of_few_rounds():
    rounds = [{"total_ms": 10.0 + n} for n in range(FEWEST_ROUNDS)]
    few = speedup(rounds[:-1], rounds[:-1], "total_ms")
    assert few.value == 1.0 and few.low is None and few.high is None
    assert speedup(rounds, rounds, "total_ms").low == 1.0
    told = row("level 1", (5.0, 6.0), (10.0, 11.0), suite="decode")
    assert not told.has_interval and not told.no_difference
    assert cells.ratio(told) == "1.91x (–)"


def test_what_is_not_known_is_a_dash_and_no_zero():
    judged = Result("evaluate", "m", "real", "level 1", perplexity=28.09, nll=3.3, perplexity_ratio=1.2)
    assert cells.perplexity(judged) == "28.09 ± –" and cells.over_dense(judged) == "1.200x ± –"
    exact = dataclasses.replace(judged, perplexity_stderr=0.0004, perplexity_ratio_stderr=0.0123)
    assert cells.perplexity(exact) == "28.09 ± <0.01" and cells.over_dense(exact) == "1.200x ± 0.012"
    broken = dataclasses.replace(judged, perplexity=None, nll=800.0)
    assert cells.perplexity(broken) == "inf"
    (chart,) = charts([row("level 1", (5.0,), (10.0,), suite="pruning", level=1)])["pruning"]
    told = chart.to_json()
    assert '"low": null' in told and '"speed-up": 2.0' in told


def test_files_of_earlier_versions_lose_their_intervals_of_few_rounds(tmp_path):
    measured = row("level 1", (5.0, 6.0), (10.0, 11.0))
    ResultSet(PLACE, [dataclasses.replace(measured, speedup_low=1.9, speedup_high=1.95)]).write(tmp_path / "r.json")
    (found,) = ResultSet.read(tmp_path / "r.json").results
    assert found.speedup == measured.speedup and not found.has_interval


def test_the_table_of_prune_holds_dashes(worded, letters, tmp_path, capsys):
    arguments = ["--criterion", "magnitude", "--no-compensate", "--heads", "0.5", "--eval-tokens", "60"]
    assert main(["prune", worded, "-o", str(tmp_path / "o"), *arguments, "--text", letters["test"]]) == 0
    said = capsys.readouterr().out
    assert "± –" in said and "0.00" not in said.replace("00.0", "") and "1 (reference)" in said


# --- comparisons and demands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "differing",
    [{"seed": 2}, {"text": "other"}, {"tokens": 2}, {"context": 128}, {"stride": 3}, {"configuration": "all"}],
)
def test_rows_that_differ_in_what_was_measured_are_never_compared(differing):
    first = quality(0.5, 1.2, seed=1)
    second = dataclasses.replace(first, **differing)
    both = ResultSet(PLACE, [first, second])
    assert compare(both, both).compared == 2
    with pytest.raises(InputError, match="no row in common"):
        compare(ResultSet(PLACE, [first]), ResultSet(PLACE, [second]))


def test_pruned_rows_of_other_calibration_are_never_compared():
    rows = [quality(0.0, 1.0), quality(0.5, 1.2)]
    old, new = (ResultSet(PLACE, rows, {"quality": {"calibration_tokens": n}}) for n in (2048, 24576))
    found = compare(old, new)
    assert found.compared == 1 and [r.heads_pruned for r in found.only_old] == [0.5]


def test_a_change_needs_an_interval():
    old = row("level 1", (5.0, 5.1), (10.0, 10.1), suite="decode")
    new = row("level 1", (9.0, 9.1), (10.0, 10.1), suite="decode")
    found = compare(ResultSet(PLACE, [old]), ResultSet(PLACE, [new]))
    assert found.unknown == 1 and not found.changes and found.compared == 0
    assert any("has no interval" in line for line in lines(found))


def test_a_demand_that_nothing_meets_ends_with_code_2_and_names_the_nearest(tmp_path, capsys):
    all_results().write(tmp_path / "r.json")
    arguments = ["recommend", "m", "--from", tmp_path / "r.json", "--json", tmp_path / "c.json"]
    said = refused(capsys, *arguments, "--max-memory", "299", "--max-perplexity-increase", "1%", "-q")
    assert "a perplexity at most 1 % above" in said and "at most 299 MB" in said
    assert "nearest is level 3, int8" in said and "300 MB" in said
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["recommend", "m", "--max-perplexity-increase", "10"],
        ["prune", "m", "-o", "o", "--heads", "10"],
        ["prune", "m", "-o", "o", "--neurons", "10"],
        ["prune", "m", "-o", "o", "--elastic", "0.3,10"],
        ["sweep", "m", "-o", "o", "--heads", "0.3,10"],
        ["generate", "m", "a", "--heads", "10"],
        ["evaluate", "m", "--neurons", "10"],
        ["quantize", "m", "-o", "o", "--heads", "10"],
        ["adapt", "m", "-o", "o", "--budget", "0.5", "--overshoot", "10"],
        ["bench", "quality", "m", "--heads", "10"],
    ],
)
def test_a_bare_number_above_1_is_asked_about(arguments, capsys):
    assert "10 means 1000 %; write 10% or 0.1" in refused(capsys, *arguments)


def test_ratios_may_be_percentages():
    assert (ratio("30%"), ratio("0.3"), ratio("1"), share("150%")) == (0.3, 0.3, 1.0, 1.5)
    for text_, said in (
        ("150%", "more than the whole"),
        ("-1", "below 0"),
        ("half", "not a number"),
        ("nan", "finite"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            ratio(text_)
