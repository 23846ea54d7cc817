"""Layers with an attention window keep its positions only, in rings, and compute what a whole cache does."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder, some_tokens, with_layers

from sentinel.adapt.integration import integrate
from sentinel.adapt.pruning.compact import expand_kv
from sentinel.cli import main
from sentinel.commands.pruning import not_smaller
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.infer.engine import Engine, OpenSequence
from sentinel.infer.native import NativeEngine
from sentinel.infer.native.kernels.layout import MAX_ROWS
from sentinel.infer.native.kv_cache import KvArea
from sentinel.infer.opening import make_engine
from sentinel.infer.pack import pack
from sentinel.infer.torch.static import StaticTorchEngine
from sentinel.models import layer_spec
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.kv_cache import KVCache
from sentinel.models.layer_spec import WINDOW_SLACK, ring_size
from sentinel.models.record import Record
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
        chosen = [s for s in self.texts if s.length + 3 <= s.limit and self.rng.random() < 0.7]
        for _ in range(3 if chosen else 0):
            tokens = self.tokens(len(chosen))
            logits = self.engine.step(chosen, tokens)
            for sequence, token, row in zip(chosen, tokens, logits, strict=True):
                self.texts[sequence].append(token)
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


def of_rows(spec: ModelSpec, places: list[int]) -> int:
    """Numbers in keys and values of so many places a layer."""
    return sum(
        2 * layer.n_kv_head * layer.head_dim * n
        for layer, n in zip(spec.with_baseline_layers().layers, places, strict=True)
    )


def test_bytes_of_the_cache_are_those_of_the_rings():
    spec = windowed(64, None, 200)
    for room, places in ((1, [1, 1, 1]), (192, [192] * 3), (193, [192, 193, 193]), (4000, [192, 4000, 352])):
        assert spec.kv_bytes(room, 2) == 2 * of_rows(spec, places)
    for context, seen in ((1, [1, 1, 1]), (64, [64] * 3), (65, [64, 65, 65]), (4000, [64, 4000, 200])):
        assert spec.kv_bytes_read(context, 2) == 2 * of_rows(spec, seen)
    plain = windowed(None, None, None)
    assert spec.windows == (64, 200) and plain.windows == ()
    assert plain.kv_bytes(4000) == plain.kv_bytes_read(4000) == 4000 * plain.kv_bytes_per_position()
    assert spec.flops_per_token(64) == plain.flops_per_token(64)
    heads = [4 * layer.n_head * layer.head_dim for layer in spec.layers]
    assert plain.flops_per_token(100) - spec.flops_per_token(100) == heads[0] * (100 - 64)
    assert MAX_ROWS <= WINDOW_SLACK  # a pass writes all of its rows before it reads


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_engine_takes_the_memory_of_its_windows(kind):
    """All layers look back 64 tokens, of 4,096; head_dim is a whole block of the native cache."""
    spec = with_layers(windowed(64, 64, 64), (6, 2, 32, 80), (3, 3, 32, 80), (4, 1, 32, 7), window=64)
    held = {}
    for name, windows in (("windows", 64), ("whole", None)):
        engine = engine_of(kind, filled_decoder(with_layers(spec, window=windows)))
        engine.open([1, 2, 3], CONTEXT - 3)
        held[name] = engine.memory()
        kept = engine.decoder.cache_spec if engine.decoder is not None else engine.spec  # level 0 repeats grouped heads
        assert held[name].kv == kept.kv_bytes(CONTEXT, engine.kv_bytes)
        context = 1000
        seen = min(context, windows or context)
        read = 2 * seen * engine.spec.kv_bytes_per_position(engine.kv_bytes)
        assert engine.step_bytes(2, context) == engine.weight_bytes_per_token() + read
    assert held["windows"].kv * 4096 == held["whole"].kv * 192
    if held["whole"].work is not None:  # scores are of the places, too
        assert held["windows"].work < held["whole"].work


def test_a_published_shape_keeps_a_fraction():
    """The numbers of the design."""
    config = KNOWN_SHAPES["gemma-3-270m"]
    spec = family_of(config["model_type"]).spec_from_config(config)
    assert 8192 * spec.kv_bytes_per_position(2) == 150_994_944
    assert spec.kv_bytes(8192, 2) == KvArea(spec.layers, 1, 8192, kind="half").n_byte == 34_996_224


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_more_than_a_ring_has_kept_is_not_taken_away(kind):
    """What is refused changes nothing; the limit is of the longest that a sequence was, forks included."""
    engine = engine_of(kind, MODELS["narrow"])
    text = text_of(3, 500)
    sequence, _ = engine.open(text[:160], 300)
    engine.roll_back(sequence, 159)  # the ring of 160 has not turned
    engine.extend(sequence, text[1:400])
    for n in (129, 399):
        with pytest.raises(InputError, match=f"a window of 7 tokens .* at most 128 tokens can be taken away, not {n}"):
            engine.roll_back(sequence, n)
    engine.roll_back(sequence, 100)
    other = engine.fork(sequence)
    for one in (sequence, other):
        with pytest.raises(InputError, match="has held 400; at most 28 tokens can be taken away, not 29"):
            engine.roll_back(one, 29)
        engine.roll_back(one, 28)
    expected = make_engine(MODELS["narrow"], 1).score(text[:273], last=1)[0]
    for one in (sequence, other):
        found = engine.step([one], [text[272]])[0]
        assert np.abs(found - expected).max() < (1e-4 if kind[0] != 3 else 0.05) * np.abs(expected).max()
    whole = engine_of(kind, filled_decoder(windowed(None, None, None)))
    sequence, _ = whole.open(text, 5)
    whole.roll_back(sequence, 499)  # without a window, any number


def test_a_sequence_in_the_place_of_another_one_sees_nothing_of_it():
    for kind in KINDS:
        engine = engine_of(kind, MODELS["narrow"])
        engine.close(engine.open(text_of(4, 700), 5)[0])
        (first, second), logits = engine.open_all([text_of(5, 350), text_of(6, 9)], 60)
        for sequence, row, text in ((first, logits[0], text_of(5, 350)), (second, logits[1], text_of(6, 9))):
            alone, expected = engine_of(kind, MODELS["narrow"]).open(text, 60)
            assert sequence.length == alone.length
            assert np.abs(row - expected).max() <= 1e-3 * np.abs(expected).max()


def test_a_cache_of_the_decoder_takes_pieces_and_padding():
    """Left padding, and rows of a batch, through a `KVCache` whose rings turn."""
    decoder = MODELS["narrow"]
    tokens = some_tokens(decoder.spec, batch=2, length=420)
    mask = torch.ones_like(tokens)
    mask[1, :50] = 0
    with torch.no_grad():
        expected = decoder(tokens, None, mask)
        cache = KVCache(decoder.cache_spec, 2, 420)
        ends = (200, 201, 202, 230, 400, *range(401, 421))
        pieces = [
            decoder(tokens[:, start:end], cache, mask[:, :end]) for start, end in zip((0, *ends), ends, strict=False)
        ]
    assert [keys.shape[2] for keys in cache.keys] == [160, 420, 192]
    found = torch.cat(pieces, 1)
    assert torch.allclose(found[0], expected[0], atol=1e-3) and torch.allclose(
        found[1, 50:], expected[1, 50:], atol=1e-3
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_width_keeps_rings(kind, monkeypatch):
    decoder = filled_decoder(windowed(7, None, 40))
    engine, width = engine_of(kind, decoder), Width((1, 2, 0), (40, 80, 13))
    truth = Truth(kind, decoder, monkeypatch)
    text = text_of(7, 330)
    for one in (engine, truth.engine):
        one.set_width(width)
    sequence, logits = engine.open(text[:300], 30)
    logits = [logits, *(engine.step([sequence], [token])[0] for token in text[300:])]
    truth.check(text, np.array(logits))


def test_rings_that_have_turned_go_on_in_fp32():
    """A token whose keys half precision can't hold comes when places of the ring were taken before."""
    decoder = filled_decoder(windowed(7, None, 40))
    with torch.no_grad():
        decoder.embed.weight[:, 0], decoder.state_dict()["layers.0.attn_norm.weight"][0] = 1e-6, 2e5
        decoder.embed.weight[7, 0] = 3e7
    text = [token for token in text_of(8, 400) if token != 7]
    engine, exact = (NativeEngine(pack(decoder, "int8"), kv=kv) for kv in ("half", "fp32"))
    sequence, other = (one.open(text[:350], 40)[0] for one in (engine, exact))
    for i, token in enumerate((text[350], 7, *text[351:360])):
        right, found = exact.step([other], [token])[0], engine.step([sequence], [token])[0]
        assert engine.kv_bytes == (2 if i == 0 else 4)
        assert np.abs(found - right).max() < 2e-2 * np.abs(right).max()


def test_info_says_what_windows_keep(tmp_path, capsys):
    spec = windowed(64, None, 64)
    save_checkpoint(filled_decoder(spec), tmp_path / "m", None, Record())
    assert main(["info", str(tmp_path / "m"), "--json", str(tmp_path / "i.json")]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "i.json").read_text())
    assert found["kv_bytes"] == spec.kv_bytes(CONTEXT) == 4 * of_rows(spec, [192, CONTEXT, 192])
    assert f"{spec.kv_bytes(CONTEXT) / 1e6:,.1f} MB for 4,096 tokens; 2 of 3 layers look back 64 tokens" in said


def test_windows_bound_what_repeated_keys_cost():
    """Repeated keys and values cost more than fewer weights save from some context on, or, within windows, never."""
    for windows, text in (((None,) * 3, True), ((512,) * 3, True), ((8,) * 3, False)):
        before = windowed(*windows)
        after = Width((4,) * 3, (40,) * 3).of(expand_kv(filled_decoder(before)).spec)
        said = not_smaller(before, after, "m", expanded=True)
        assert said is not None and ("cached tokens a token reads more" in said) == text
        if text:
            even = int(said.split("beyond ")[1].split(" cached")[0].replace(",", ""))
            saved = before.weight_bytes_per_token() - after.weight_bytes_per_token()
            more = [after.kv_bytes_read(n) - before.kv_bytes_read(n) for n in (even, even + 1)]
            assert more[0] <= saved < more[1]
