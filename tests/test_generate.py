"""Sampling, engines and streaming, and where the command's prompt comes from."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import ToyEngine, filled_decoder, letter_tokenizer, refused
from hypothesis import given
from hypothesis import strategies as st

from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.hugging_face.model import to_hugging_face
from sentinel.infer.generate import Timings, generate_text, generate_tokens, stream_text
from sentinel.infer.opening import make_engine
from sentinel.infer.sampling import Sampler, SamplingSettings, penalise_repetition, token_probabilities
from sentinel.models.record import Record

PROMPTS = [[5, 9, 2, 33], [7], [1, 2, 3, 4, 5, 6, 7]]


def grown(engine, prompts, count, **options):
    return [
        [t for t in row if t is not None]
        for row in zip(*generate_tokens(engine, prompts, count, **options), strict=True)
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_greedy_tokens_equal_hugging_face_at_every_level(name):
    decoder = filled_decoder(spec_of(name))
    theirs = to_hugging_face(decoder)
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for level in (0, 1, 2):
            assert grown(make_engine(decoder, level), [prompt], 12) == [expected]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_batch_of_unequal_prompts_equals_single_prompts(level, positions):
    engine = make_engine(filled_decoder(unequal_spec(positions)), level)
    single = [grown(engine, [prompt], 9)[0] for prompt in PROMPTS]
    assert grown(engine, PROMPTS, 9) == single
    settings = SamplingSettings(temperature=0.8, seed=3)
    assert grown(engine, PROMPTS[:1], 9, settings=settings) == grown(engine, PROMPTS, 9, settings=settings)[:1]


def test_sequences_end_at_eos_on_their_own():
    engine = make_engine(filled_decoder(unequal_spec()), 1)
    free = grown(engine, PROMPTS, 9)
    eos = free[0][3]
    timings = Timings()
    rows = grown(engine, PROMPTS, 9, eos_ids=(eos,), timings=timings)
    for row, full in zip(rows, free, strict=True):
        assert row == (full[: full.index(eos) + 1] if eos in full else full)
    assert len(timings.stamps) == max(len(row) for row in rows)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=40), st.integers(0, 50), st.floats(0.05, 1.0))
def test_top_k_and_top_p_keep_the_likeliest(values, top_k, top_p):
    logits = np.array(values, dtype=np.float32)
    settings = SamplingSettings(temperature=0.7, top_k=top_k, top_p=top_p)
    probabilities = token_probabilities(logits, settings)
    assert probabilities.sum() == pytest.approx(1.0)
    kept = logits[probabilities > 0]
    assert kept.min() >= np.max(logits[probabilities == 0], initial=-np.inf) - 1e-6  # equal but for rounding
    full = token_probabilities(logits, SamplingSettings(temperature=0.7))
    if top_k == 0:
        assert full[probabilities > 0].sum() >= top_p - 1e-9
        assert len(kept) == 1 or full[probabilities > 0].sum() - full[probabilities > 0].min() < top_p + 1e-9


def test_sampling_follows_the_distribution_and_the_seed():
    logits = np.log(np.array([[0.6, 0.3, 0.1]], dtype=np.float32))
    sampler = Sampler(SamplingSettings(temperature=1.0, seed=1), 1)
    drawn = [sampler(logits, [[]])[0] for _ in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    again = Sampler(SamplingSettings(temperature=1.0, seed=1), 1)
    assert [again(logits, [[]])[0] for _ in range(50)] == drawn[:50]
    other = Sampler(SamplingSettings(temperature=1.0, seed=2), 1)
    assert [other(logits, [[]])[0] for _ in range(50)] != drawn[:50]


def test_repetition_penalty_is_that_of_hugging_face():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = np.random.default_rng(0).normal(size=30).astype(np.float32)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[3, 3, 8]]), torch.tensor(logits)[None])[0].numpy()
    assert penalise_repetition(logits, [3, 3, 8], 1.7) == pytest.approx(theirs)


def test_the_smallest_temperature_is_greedy():
    logits = np.random.default_rng(0).normal(0, 9, 50).astype(np.float32)
    probabilities = token_probabilities(logits, SamplingSettings(temperature=1e-320, top_k=5, top_p=0.9))
    assert probabilities.argmax() == logits.argmax() and probabilities.max() == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
        {"seed": -1},
    ],
)
def test_bad_sampling_settings_are_refused(bad):
    with pytest.raises(InputError):
        SamplingSettings(**bad)


@pytest.mark.parametrize(
    ("prompts", "count", "said"),
    [
        ([], 1, "no prompt"),
        ([[]], 1, "empty"),
        ([[97]], 1, "ids"),
        ([[1]], 0, "max-new-tokens"),
        ([[1] * 60], 5, "context"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompts, count, said):
    engine = make_engine(filled_decoder(unequal_spec()), 1)
    with pytest.raises(InputError, match=said):
        list(generate_tokens(engine, prompts, count))


def test_levels_and_precisions_that_do_not_exist_are_refused():
    decoder = filled_decoder(unequal_spec())
    for level in (-1, 4):
        with pytest.raises(InputError, match="does not exist"):
            make_engine(decoder, level)
    with pytest.raises(InputError, match="level 2 runs in fp32, not in int4"):
        make_engine(decoder, 2, precision="int4")


class Letters:
    """A tokenizer of one letter per token, for the streaming tests."""

    eos_ids = (0,)

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return bytes(i for i in ids if i).decode("utf-8", errors="replace")


def script(text):
    """An engine that says a given text after a prompt of two tokens, byte by byte."""
    said = [*text.encode(), 0]
    return ToyEngine(
        lambda tokens: said[len(tokens) - 2], dataclasses.replace(spec_of("gpt2"), vocab_size=256, max_seq_len=200)
    )


def test_stream_never_shows_half_a_character_or_a_stop_string():
    text = "naïve 日本 STOPPING STOP here"
    pieces = list(stream_text(script(text), Letters(), "ab", 99))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert generate_text(script(text), Letters(), "ab", 99, stop=["STOP "]) == "naïve 日本 STOPPING "
    assert generate_text(script(text), Letters(), "ab", 99, stop=["here", "PING"]) == "naïve 日本 STOP"
    assert generate_text(script(text), Letters(), "ab", 3) == "na\ufffd"
    with pytest.raises(InputError, match="stop string is empty"):
        generate_text(script(text), Letters(), "ab", 3, stop=[""])
    with pytest.raises(InputError, match="prompt is empty"):
        generate_text(script(text), Letters(), "", 3)


# --- the command --------------------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ 'a ' if m.role == 'system' else 'b ' }}{{ m.content }} {% endfor %}p"


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """A tiny model with a chat template: "b QUESTION p", with "a SYSTEM" before."""
    folder = tmp_path_factory.mktemp("models") / "chatting"
    spec = dataclasses.replace(spec_of("llama-grouped"), vocab_size=17)
    save_checkpoint(filled_decoder(spec), folder, letter_tokenizer(), Record())
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return str(folder)


@pytest.fixture
def asked(monkeypatch):
    """The token ids that the engine of the command is given."""
    seen = []
    monkeypatch.setattr(
        "sentinel.infer.generate.generate_tokens", lambda engine, prompts, *_: seen.extend(prompts) or []
    )
    return seen


def stdin(monkeypatch, data: bytes, terminal: bool = False) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.stdin", stream)


def ids(text: str) -> list[int]:
    return letter_tokenizer().encode(text)


class Told:
    """Timings of nothing: the fake engine says no token."""

    stamps = (1.0,)
    ended = ended_at_once = False
    ttft_ms = tokens_per_s = 1.0
    tpot_ms = None


@pytest.fixture
def run_generate(asked, monkeypatch):
    monkeypatch.setattr("sentinel.infer.generate.Timings", Told)

    def run(*arguments) -> list[int]:
        assert main(["generate", *map(str, arguments)]) == 0
        (found,) = asked
        asked.clear()
        return found

    return run


def test_a_chat_model_is_asked_through_its_template_unless_raw(chatting, worded, run_generate, capsys):
    assert run_generate(chatting, "c d") == ids("b c d p")
    assert "chat template" in capsys.readouterr().err
    assert run_generate(chatting, "c d", "--system", "e") == ids("a e b c d p")
    assert run_generate(chatting, "c d", "--raw") == ids("c d")
    assert run_generate(worded, "c d") == ids("c d")


def test_the_prompt_comes_from_the_argument_a_file_or_standard_input(worded, run_generate, monkeypatch, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("\N{BYTE ORDER MARK}c d e\r\n".encode())
    assert run_generate(worded, "--file", file) == ids("c d e")
    for arguments in ([], ["-"]):
        stdin(monkeypatch, b"f g\n")
        assert run_generate(worded, *arguments) == ids("f g")


def test_an_end_at_once_is_said(chatting, worded, capsys, monkeypatch):
    def ends(engine, prompts, count, settings, eos_ids, timings, lookup, form):
        timings.stamps.append(0.1)
        yield [eos_ids[0]]

    monkeypatch.setattr("sentinel.infer.generate.generate_tokens", ends)
    for model, more, said in (
        (chatting, [], "try --raw"),
        (chatting, ["--raw"], "leave out --raw"),
        (worded, [], "ask in another way"),
    ):
        assert main(["generate", model, "c", *more]) == 0
        told = capsys.readouterr().err
        assert told.count("the model ended at once") == 1 and said in told


def test_prompts_that_are_none_are_one_sentence(worded, capsys, monkeypatch, tmp_path):
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"caf\xe9")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    long = tmp_path / "long.txt"
    long.write_text("a " * 70)
    for arguments, said in (
        (["c", "--file", empty], "given twice"),
        (["--file", bad], "is not UTF-8 (byte 3)"),
        (["--file", empty], "the prompt is empty"),
        (["--file", tmp_path / "none"], "can't be read (No such file or directory)"),
        (["--file", tmp_path], "can't be read (Is a directory)"),
        (["--file", long], "more than the model's context of 64"),
        ([""], "the prompt is empty"),
        (["caf\udce9"], "not valid UTF-8 text"),
        (["c", "--system", "d"], "has no chat template"),
        (["c", "--system", "d", "--raw"], "give one of the two"),
    ):
        assert said in refused(capsys, "generate", worded, *arguments)
    stdin(monkeypatch, b"\xff\xfe")
    assert "standard input is not UTF-8" in refused(capsys, "generate", worded, "-")
    stdin(monkeypatch, b"", terminal=True)
    assert "there is no prompt" in refused(capsys, "generate", worded)
    stdin(monkeypatch, b"")
    assert "the prompt is empty" in refused(capsys, "generate", worded)
