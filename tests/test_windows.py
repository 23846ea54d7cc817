"""Layers with an attention window keep its positions only, in rings, and compute what a whole cache does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder, some_tokens, with_layers

from sentinel.adapt.integration import integrate
from sentinel.errors import InputError
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.infer.engine import Engine, OpenSequence
from sentinel.infer.native.kernels.layout import MAX_ROWS
from sentinel.infer.opening import make_engine
from sentinel.infer.torch.static import StaticTorchEngine
from sentinel.models import layer_spec
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.kv_cache import KVCache
from sentinel.models.layer_spec import WINDOW_SLACK, ring_size
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

KINDS = [(0, None), (1, None), (2, None), (3, "int8"), ("static", None)]
TOLERANCE = {"fp32": 1e-4, "int8": 2e-2}  # rounded inputs may fall to either side
CONTEXT = 4096


def windowed(*windows: int | None) -> ModelSpec:
    """A model of three layers with these windows."""
    spec = with_layers(spec_of("llama-grouped"))
    layers = tuple(
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=window))
        for layer, window in zip(spec.layers, windows, strict=True)
    )
    return dataclasses.replace(spec, layers=layers, max_seq_len=CONTEXT)


MODELS = {
    "narrow": filled_decoder(windowed(7, None, 40)),
    "one": filled_decoder(windowed(1, 1, 1)),
    "wide": filled_decoder(windowed(None, 133, 64)),
    "capped": filled_decoder(with_layers(windowed(24, 24, None), soft_cap=3.0)),
    "integrated": integrate(filled_decoder(windowed(7, None, 33)), rank=2),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Products of a few numbers wait for a second thread longer than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine_of(kind, decoder: Decoder) -> Engine:
    level, precision = kind
    return StaticTorchEngine(decoder) if level == "static" else make_engine(decoder, level, precision=precision)


class Truth:
    """Logits at every position of a text, of a whole cache: those that a decoder without any gives; with quantised weights,
    those of an engine whose rings are as large as the context."""

    def __init__(self, kind, decoder: Decoder, monkeypatch, level: int = 1) -> None:
        self.patch = monkeypatch
        self.engine = engine_of(kind if kind[0] == 3 else (level, None), decoder)
        self.tolerance = TOLERANCE[self.engine.precision]

    def of(self, text: list[int], last: int) -> np.ndarray:
        with self.patch.context() as patch:
            patch.setattr(layer_spec, "WINDOW_SLACK", CONTEXT)
            return self.engine.score(text, last)

    def check(self, text: list[int], logits: np.ndarray) -> None:
        """``logits`` [n, V] are those of the last n positions of the text."""
        self.compare(logits, self.of(text, len(logits)))

    def compare(self, logits: np.ndarray, expected: np.ndarray) -> None:
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() <= self.tolerance * np.abs(expected).max()


def text_of(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 97, n).tolist()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_text_of_any_length_is_that_of_a_whole_cache(kind, model, monkeypatch):
    """Prompts around every window and ring, read at once or in pieces, then steps until all rings have turned."""
    decoder = MODELS[model]
    window = max(decoder.spec.windows)
    ring = ring_size(window, CONTEXT)
    text = text_of(1, 2 * ring + 40)
    truth = Truth(kind, decoder, monkeypatch, level=0)
    expected = truth.of(text, len(text))
    for n in sorted({1, max(1, window - 1), window, window + 1, 2 * window + 37, ring - 1, ring, 2 * ring + 5}):
        engine = engine_of(kind, decoder)
        sequence, first = engine.open(text[:n], 50)
        steps = [engine.step([sequence], [token])[0] for token in text[n : n + 3]]
        truth.compare(np.array([first, *steps]), expected[n - 1 : n + 3])
        truth.compare(engine.verify(sequence, text[n + 3 : n + 30]), expected[n + 3 : n + 30])
    engine = engine_of(kind, decoder)
    sequence, _ = engine.open(text[:5], len(text))
    for start, end in ((5, 6), (6, ring + 3), (ring + 3, 2 * ring + 20)):  # also more at once than a ring holds
        truth.compare(engine.verify(sequence, text[start:end]), expected[start:end])
    steps = [engine.step([sequence], [token])[0] for token in text[2 * ring + 20 :]]
    truth.compare(np.array(steps), expected[2 * ring + 20 :])
    truth.compare(engine.score(text), expected)


class Script:
    """Random calls of an engine; every logits that it gives are checked against the texts as they are then."""

    def __init__(self, engine: Engine, truth: Truth, seed: int) -> None:
        self.engine, self.truth, self.rng = engine, truth, np.random.default_rng(seed)
        self.texts: dict[OpenSequence, list[int]] = {}

    def tokens(self, n: int) -> list[int]:
        return self.rng.integers(0, 97, n).tolist()

    def one(self) -> OpenSequence:
        return list(self.texts)[self.rng.integers(len(self.texts))]

    def open(self) -> None:
        """Prompts of unequal lengths, in tables that grow."""
        prompts = [self.tokens(int(n)) for n in self.rng.choice((3, 30, 100, 150, 170, 200, 350), 2)]
        sequences, logits = self.engine.open_all(prompts, int(self.rng.choice((100, 400))))
        for sequence, prompt, row in zip(sequences, prompts, logits, strict=True):
            self.texts[sequence] = prompt
            self.truth.check(prompt, row[None])

    def step(self) -> None:
        chosen = [s for s in self.texts if s.length < s.limit and self.rng.random() < 0.7]
        for _ in range(3):
            chosen = [s for s in chosen if s.length < s.limit]
            if not chosen:
                return
            tokens = self.tokens(len(chosen))
            logits = self.engine.step(chosen, tokens)
            for sequence, token in zip(chosen, tokens, strict=True):
                self.texts[sequence].append(token)
        for sequence, row in zip(chosen, logits, strict=True):
            self.truth.check(self.texts[sequence], row[None])

    def read(self) -> None:
        sequence, how = self.one(), self.rng.choice(("verify", "extend"))
        tokens = self.tokens(min(int(self.rng.choice((1, 2, 33, 128, 180))), sequence.limit - sequence.length))
        if not tokens:
            return
        self.texts[sequence] += tokens
        found = getattr(self.engine, how)(sequence, tokens)
        self.truth.check(self.texts[sequence], found if how == "verify" else found[None])

    def roll_back(self) -> None:
        sequence = self.one()
        most = min(sequence.length - 1, WINDOW_SLACK - (sequence.reach - sequence.length))
        n = most if self.rng.random() < 0.3 else int(self.rng.integers(0, most + 1))
        self.engine.roll_back(sequence, n)
        del self.texts[sequence][len(self.texts[sequence]) - n :]

    def fork(self) -> None:
        sequence = self.one()
        other = self.engine.fork(sequence, room=int(self.rng.choice((20, 300))))
        self.texts[other] = list(self.texts[sequence])
        tokens = self.tokens(15)
        self.texts[other] += tokens
        self.truth.check(self.texts[other], self.engine.extend(other, tokens)[None])

    def close(self) -> None:
        if len(self.texts) > 3:
            sequence = self.one()
            self.engine.close(sequence)
            del self.texts[sequence]

    def run(self, n: int) -> None:
        self.open()
        for _ in range(n):
            calls = (self.step, self.read, self.read, self.roll_back, self.roll_back, self.fork, self.close, self.open)
            calls[self.rng.integers(len(calls) - (len(self.texts) > 4))]()


@pytest.mark.parametrize("model", ["narrow", "wide", "integrated"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_whatever_is_called_is_that_of_a_whole_cache(kind, model, monkeypatch):
    """Open, step, verify, extend, roll back, fork, close, in any order; sequences are of unequal lengths, tables grow."""
    decoder = MODELS[model]
    for seed in range(2):
        Script(engine_of(kind, decoder), Truth(kind, decoder, monkeypatch), seed).run(20)
