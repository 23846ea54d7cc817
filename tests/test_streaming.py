"""Text of tokens that are parts of characters, or no text at all, as it is streamed."""

from __future__ import annotations

import dataclasses

import pytest
from conftest import spec_of
from helpers import ToyEngine, byte_level, filled_decoder, metaspace

from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.sources import load
from sentinel.infer.generate import stream_text
from sentinel.models.tokenizer import TextTokenizer


def says(tokenizer: TextTokenizer, prompt: list[int], answer: list[int]) -> list[str]:
    """Pieces that are streamed of ``answer`` after ``prompt``."""
    spec = dataclasses.replace(spec_of("gpt2"), vocab_size=400, max_seq_len=400)
    engine = ToyEngine(lambda tokens: answer[len(tokens) - len(prompt)], spec)
    return list(stream_text(engine, tokenizer, prompt, len(answer)))


@pytest.mark.parametrize("make", [byte_level, metaspace], ids=["byte-level", "byte fallback"])
def test_characters_of_several_tokens_are_streamed_whole(make):
    tokenizer = TextTokenizer(make(), ())
    begin = tokenizer.encode("")
    for prompt in ("the", "👩‍👩‍👧🙂", "日本日本", "é"):
        for text in ("🙂", "你好，世界 quick 👩‍👩‍👧 é", "ﬁ🙂\n日"):
            before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
            assert whole[: len(before)] == before and len(begin) < len(before)
            pieces = says(tokenizer, before, whole[len(before) :])
            assert "".join(pieces) == text
            assert not any("\ufffd" in piece for piece in pieces)
            assert len(pieces) > len(text) // 2  # as soon as they are certain


@pytest.mark.parametrize("make", [byte_level, metaspace], ids=["byte-level", "byte fallback"])
def test_a_text_that_ends_within_a_character_says_so(make):
    tokenizer = TextTokenizer(make(), ())
    before, whole = tokenizer.encode("the"), tokenizer.encode("the 🙂")
    *pieces, last = says(tokenizer, before, whole[len(before) : -1])
    assert "".join(pieces) == " " and last.strip("\ufffd") == "" and last


def test_tokens_beyond_the_tokenizer_are_no_text(tmp_path):
    """A vocabulary may be padded to a round number: nobody can spell what is added."""
    ours = TextTokenizer(byte_level(), (0,))
    theirs = ours.to_hugging_face()
    save_checkpoint(filled_decoder(dataclasses.replace(spec_of("llama-grouped"), vocab_size=320)), tmp_path / "m", ours)
    loaded = load(str(tmp_path / "m"))
    tokenizer = loaded.require_tokenizer()
    assert tokenizer.vocab_size == len(theirs) == 300 < loaded.spec.vocab_size
    ids = [*tokenizer.encode("the quick"), 310, *tokenizer.encode("fox"), 319]
    assert tokenizer.decode(ids) == theirs.decode(ids) == "the quickfox"
    assert "".join(says(tokenizer, tokenizer.encode("a"), [310, *tokenizer.encode("b"), 319])) == "b"
