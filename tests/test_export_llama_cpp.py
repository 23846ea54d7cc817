"""llama.cpp itself computes what the written files hold: logits of level 1, and its greedy text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
import torch
from conftest import spec_of, unequal_spec
from gguf_models import FULL, UNEQUAL, layer, model, of_family
from helpers import byte_level, filled_decoder, some_tokens, with_layers

from sentinel.adapt.pruning.compact import expand_kv
from sentinel.formats.gguf.export import write_gguf
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.measure.peers import PeerSettings, llama_cpp_python
from sentinel.models.decoder import Decoder
from sentinel.models.tokenizer import TextTokenizer

llama_cpp = pytest.importorskip("llama_cpp")
NEW = 64


@contextmanager
def loaded(path: Path) -> Iterator[Any]:
    """llama.cpp with the file, keys and values in fp32, as weights are; attention not in blocks, whose sums are in fp16."""
    made = llama_cpp.Llama(
        str(path), n_ctx=128, n_batch=128, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


def logits_of(llama: Any, tokens: Sequence[int]) -> np.ndarray:
    """Logits [T, V] of a text read in one pass."""
    llama.reset()
    llama.eval(tokens)
    return np.array(llama.scores[: len(tokens)])


def greedy(llama: Any, prompt: Sequence[int], new: int) -> list[int]:
    llama.reset()
    llama.eval(prompt)
    found: list[int] = []
    for _ in range(new):
        found.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(found[-1:])
    return found


def assert_runs(decoder: Decoder, folder: Path) -> None:
    """The largest difference of logits is below 1e-3, and greedy text is the same; llama.cpp's GELU is a table in fp16, so
    that with it the difference is below 1e-3 of the largest logit.

    With longrope llama.cpp takes the factors of long texts as soon as the context that it is given is long.
    """
    write_gguf(decoder, None, folder / "m.gguf", "fp32")
    ropes = [part.attention.rope for part in decoder.spec.layers if part.attention.rope is not None]
    long = any(rope.type == "longrope" for rope in ropes)
    tokens = some_tokens(decoder.spec, batch=1, length=40 if long else 17)
    with torch.no_grad():
        ours = decoder(tokens)[0].numpy()
    prompt = tokens[0].tolist()
    gelu = any("gelu" in part.mlp.activation for part in decoder.spec.layers)
    scale = max(1.0, np.abs(ours).max()) if gelu else 1.0
    new = min(NEW, decoder.spec.max_seq_len - len(prompt))
    expected = [row[0] for row in generate_tokens(make_engine(decoder, 1), [prompt], new)]
    with loaded(folder / "m.gguf") as llama:
        theirs = logits_of(llama, prompt)
        assert np.abs(ours - theirs).max() < 1e-3 * scale
        assert greedy(llama, prompt, new) == expected


@pytest.mark.parametrize("name", gguf_models.FAMILIES)
def test_equal_layers(name, tmp_path):
    assert_runs(filled_decoder(of_family(name)), tmp_path)


@pytest.mark.parametrize("name", UNEQUAL)
def test_layers_that_differ(name, tmp_path):
    assert_runs(filled_decoder(UNEQUAL[name]), tmp_path)


def test_every_difference_at_once(tmp_path):
    assert_runs(filled_decoder(unequal_spec()), tmp_path)


@pytest.mark.parametrize("sizes", [((3, 3, 12, 100), (0, 0, 12, 60), (4, 4, 12, 0)), ((2, 2, 12, 100),) * 3])
def test_a_pruned_gpt2_is_filled_up(sizes, tmp_path):
    assert_runs(filled_decoder(with_layers(spec_of("gpt2"), *sizes)), tmp_path)


def test_single_heads_of_a_grouped_model(tmp_path):
    decoder = expand_kv(filled_decoder(model(FULL, layer(2, 1, 64), FULL)))
    assert_runs(decoder, tmp_path)


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.01), ("q8_0", 0.05)])
def test_rounded_weights_are_close(precision, share, tmp_path):
    decoder = filled_decoder(with_layers(UNEQUAL["biases of outputs"]))
    write_gguf(decoder, None, tmp_path / "m.gguf", precision)
    tokens = some_tokens(decoder.spec, batch=1, length=17)
    with torch.no_grad():
        ours = decoder(tokens)[0].numpy()
    with loaded(tmp_path / "m.gguf") as llama:
        error = np.abs(ours - logits_of(llama, tokens[0].tolist())).max()
    assert 0 < error < share * np.abs(ours).max()


def test_texts_become_the_same_tokens(tmp_path):
    fast = byte_level()
    tokenizer = TextTokenizer(fast, (0,), settings={"bos_token": "<|endoftext|>", "chat_template": "{{ messages }}"})
    decoder = filled_decoder(dataclasses.replace(UNEQUAL["heads"], vocab_size=fast.get_vocab_size() + 5))
    write_gguf(decoder, tokenizer, tmp_path / "m.gguf", "fp32")
    with loaded(tmp_path / "m.gguf") as llama:
        assert llama.token_eos() == 0
        assert llama.metadata["tokenizer.chat_template"] == "{{ messages }}"
        for text in ("The quick brown fox, don't 12345", "hello\n\n user  x", "é 東京", "<|endoftext|>a"):
            assert llama.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text)


def test_a_pruned_model_is_run_by_the_peer(tmp_path):
    decoder = filled_decoder(UNEQUAL["no heads, but their bias"])
    prompt = some_tokens(decoder.spec, batch=1, length=9)[0].tolist()
    expected = [row[0] for row in generate_tokens(make_engine(decoder, 2), [prompt], 12)]
    for variant in llama_cpp_python.VARIANTS:
        runner = llama_cpp_python.prepare(decoder, tmp_path, variant, PeerSettings(1, 1, 21))
        (tokens,) = runner.generate([prompt], 12, Timings())
        runner.close()
        assert len(tokens) == 12 and (variant != "F32" or tokens == expected)
