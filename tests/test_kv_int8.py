"""Keys and values in int8: what they cost, and that everything that an engine does with them goes on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import spec_of
from family_configs import CONFIGS, hugging_face_model
from helpers import filled_decoder, letter_tokenizer, refused

import sentinel
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.infer.native import NativeEngine
from sentinel.infer.opening import make_engine, open_engine
from sentinel.infer.pack import pack
from sentinel.models.decoder import Decoder

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, 60)]


@pytest.fixture(scope="module", params=["llama-grouped", "gpt2", "gemma2"])
def decoder(request, tmp_path_factory) -> Decoder:
    """Grouped heads, heads of 12 numbers, and windows with caps: what attention has of special cases."""
    if request.param in CONFIGS:
        folder = tmp_path_factory.mktemp("model")
        hugging_face_model(*CONFIGS[request.param]).save_pretrained(folder)
        return load_checkpoint(folder)
    return filled_decoder(spec_of(request.param))


def test_it_is_near_the_exact_cache(decoder):
    weights = pack(decoder, "fp32")
    exact, rough = (NativeEngine(weights, kv=kind).score(TOKENS) for kind in ("fp32", "int8"))
    difference = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 0 < difference < 0.02


def test_cached_is_uncached_and_batched_is_alone(decoder):
    engine = NativeEngine(pack(decoder, "int8"), kv="int8")
    scored = engine.score(TOKENS)
    one, first = engine.open(TOKENS[:40], 20)
    other, _ = engine.open(TOKENS[5:12], 20)
    np.testing.assert_array_equal(first, scored[39])
    for i in range(40, 50):
        np.testing.assert_array_equal(engine.step([one, other], [TOKENS[i], 3])[0], scored[i])
    np.testing.assert_array_equal(engine.verify(one, TOKENS[50:60]), scored[50:60])


def test_fork_and_roll_back(decoder):
    engine = NativeEngine(pack(decoder, "int8"), kv="int8")
    scored = engine.score(TOKENS)
    one, _ = engine.open(TOKENS[:30], 30)
    copy = engine.fork(one)
    engine.verify(one, [1, 2, 3, 4])
    engine.roll_back(one, 4)
    for sequence in (one, copy):
        np.testing.assert_array_equal(engine.extend(sequence, TOKENS[30:45]), scored[44])


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_nothing(decoder, threads):
    weights = pack(decoder, "int8")
    exact = NativeEngine(weights, threads=2, kv="int8").score(TOKENS)
    np.testing.assert_array_equal(NativeEngine(weights, threads=threads, kv="int8").score(TOKENS), exact)


def test_zeros_and_large_numbers_have_a_scale(decoder):
    changed = filled_decoder(decoder.spec)
    with torch.no_grad():
        changed.blocks[0].attn.qkv_proj.weight.mul_(0)
        changed.blocks[1].attn.qkv_proj.weight.mul_(1e6)  # beyond half precision
    engine = NativeEngine(pack(changed, "fp32"), kv="int8")
    assert np.isfinite(engine.score(TOKENS)).all()
    assert "int8" in engine.name


def test_memory_tells_that_it_is_smaller():
    decoder = filled_decoder(spec_of("llama-grouped"))
    kept = {}
    for kind in ("half", "int8"):
        engine = make_engine(decoder, 3, kv=kind)
        engine.open(TOKENS, 4)
        kept[kind] = engine.memory().kv
    # Of a head and position: 8 numbers of a key and 32 of a value (8, padded), in int8 two scales of 4 bytes besides.
    places = 64 * sum(layer.n_kv_head for layer in decoder.spec.layers)
    assert kept == {"half": places * 2 * (8 + 32), "int8": places * (8 + 32 + 2 * 4)}


def test_a_draft_has_it_too():
    decoder = filled_decoder(spec_of("llama-grouped"))
    engine = make_engine(decoder, 3, precision="int8", draft="int4", kv="int8")
    assert engine.draft is not None and engine.draft.kv_bytes == engine.kv_bytes == 1.5


def test_commands_and_functions_take_it(tmp_path, capsys):
    decoder = filled_decoder(dataclasses.replace(spec_of("llama-grouped"), vocab_size=17))
    save_checkpoint(decoder, tmp_path / "m", letter_tokenizer())
    model = str(tmp_path / "m")
    assert main(["generate", model, "a b", "--level", "3", "--kv", "int8", "--max-new-tokens", "2"]) == 0
    assert open_engine(model, level=3, kv="int8").engine.kv_bytes == 1.5
    assert sentinel.load(model).engine(3, kv="int8").kv_bytes == 1.5
    sentinel.quantize(model).save(tmp_path / "q")
    assert open_engine(str(tmp_path / "q"), kv="int8").engine.kv_bytes == 1.5
    capsys.readouterr()
    for level in ("0", "1", "2"):
        said = refused(capsys, "generate", model, "a b", "--level", level, "--kv", "int8")
        assert f"level {level} on cpu has no KV cache in int8; level 3 on the CPU has" in said


def test_what_is_not_known_is_refused():
    decoder = filled_decoder(spec_of("gpt2"))
    with pytest.raises(InputError, match="a KV cache in 'int4' is not known; it is half or int8"):
        make_engine(decoder, 3, kv="int4")
