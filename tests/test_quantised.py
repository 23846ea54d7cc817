"""Quantised checkpoints: calibration of int4, stored widths, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import LETTERS, filled_decoder, letter_tokenizer, refused, some_order, some_tokens

from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.pruning.prune import make_elastic
from sentinel.cli import main
from sentinel.cores import physical_cores
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.folder import read_record
from sentinel.infer.native import NativeEngine, NativeWeights, PackedWidth
from sentinel.infer.native import engine as native_engine
from sentinel.infer.native.kernels.cpu import IS_X86
from sentinel.infer.native.packed_file import read_packed, write_packed
from sentinel.infer.opening import make_engine
from sentinel.infer.pack import pack, pack_width
from sentinel.infer.quantised import load_quantised, load_width, save_quantised
from sentinel.models.decoder import Decoder
from sentinel.models.record import Quantised, Record
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

PROMPT = [5, 3, 2, 8, 1]


def elastic_decoder(spec: ModelSpec) -> Decoder:
    """A model with levels 0.3 and 0.7; the projections of the second are its own, the gates are not 1."""
    decoder = filled_decoder(spec)
    order = some_order(spec)
    plans = [order.plan(r, r) for r in (0.3, 0.7)]
    smaller = [filled_decoder(p.width.of(spec), seed=i) for i, p in enumerate(plans)]
    return make_elastic(decoder, order, plans, smaller)


def say_nothing(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(native_engine, "say", said.append)
    native_engine._warn_of_slow_path.cache_clear()
    return said


# --- Gram matrices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [spec_of("gpt2"), spec_of("llama-grouped"), unequal_spec()])
def test_grams_are_those_of_what_the_projections_read(spec):
    decoder = filled_decoder(spec)
    windows = some_tokens(spec, batch=10, length=12)
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for i, block in enumerate(decoder.blocks):
        for place, norm in (("in", block.attn_norm), ("mid", block.mlp_norm)):
            keep = functools.partial(seen.__setitem__, f"{i}.{place}")
            hooks.append(norm.register_forward_hook(lambda m, a, y, keep=keep: keep(y.flatten(0, 1).double())))
    with torch.no_grad():
        decoder(windows)
    for hook in hooks:
        hook.remove()
    count = 0
    for i, grams in enumerate(input_grams(decoder, windows)):
        layer, count = spec.layers[i], count + 1
        for name, source, there in (
            ("attn.qkv_proj", "in", layer.n_head), ("mlp.up_proj", "mid", layer.intermediate_size)
        ):  # fmt: skip
            if there:
                x = seen[f"{i}.{source}"]
                np.testing.assert_allclose(grams[f"layers.{i}.{name}"], x.T @ x, rtol=1e-4, atol=1e-3)
        inner = grams[f"layers.{i}.attn.out_proj"]
        assert inner.shape == (layer.n_head * layer.head_dim,) * 2
        assert grams[f"layers.{i}.mlp.down_proj"].shape == (layer.intermediate_size,) * 2
    assert count == spec.n_layer


def test_one_layers_grams_are_kept_at_a_time():
    layers = input_grams(filled_decoder(spec_of("gpt2")), some_tokens(spec_of("gpt2"), batch=2, length=5))
    first = next(layers)
    assert all(name.startswith("layers.0.") for name in first)
    second = next(layers)
    assert not first and all(name.startswith("layers.1.") for name in second)


def test_out_projection_gram_is_before_the_gates():
    spec = spec_of("llama-grouped")
    decoder = filled_decoder(spec)
    windows = some_tokens(spec, batch=3, length=12)
    with torch.no_grad():
        decoder.blocks[0].attn.gate[1] = 0.0
    gated = next(input_grams(decoder, windows))["layers.0.attn.out_proj"]
    with torch.no_grad():
        decoder.blocks[0].attn.gate.fill_(1.0)
    plain = next(input_grams(decoder, windows))["layers.0.attn.out_proj"]
    off = np.zeros(spec.layers[0].n_head * 8, bool)
    off[8:16] = True
    assert not gated[off].any() and not gated[:, off].any()
    np.testing.assert_allclose(gated[~off][:, ~off], plain[~off][:, ~off], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_calibrated_int4_is_closer(name):
    decoder = filled_decoder(spec_of(name))
    with torch.no_grad():
        for p in decoder.parameters():
            p *= 0.7
    windows, text = some_tokens(decoder.spec, 40, 48), some_tokens(decoder.spec, 1, 60, seed=9)[0].tolist()
    exact = make_engine(decoder, 2).score(text)
    plain = NativeEngine(pack(decoder, "int4")).score(text)
    informed = NativeEngine(pack(decoder, "int4", input_grams(decoder, windows))).score(text)
    assert np.square(informed - exact).mean() < 0.9 * np.square(plain - exact).mean()


# --- stored widths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [spec_of("gpt2"), spec_of("llama-grouped")])
def test_stored_widths_equal_the_elastic_model(spec, tmp_path):
    """fp32 packing is exact, so a width that is set from its file must give the elastic decoder's own logits."""
    decoder = elastic_decoder(spec)
    weights, stored = pack(decoder, "fp32"), {}
    for heads in (0.3, 0.7):
        decoder.set_width(heads, heads)
        stored[heads, heads] = pack_width(decoder, "fp32")
    save_quantised(weights, stored, tmp_path / "q", None, Record())
    loaded, _ = load_quantised(tmp_path / "q")
    engine = NativeEngine(loaded)
    dense = engine.prefill([PROMPT], 4)
    for heads in (0.7, 0.3):
        decoder.set_width(heads, heads)
        engine.set_packed_width(load_width(tmp_path / "q", loaded, heads, heads))
        expected = make_engine(decoder, 1).prefill([PROMPT], 4)
        np.testing.assert_allclose(engine.prefill([PROMPT], 4), expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(make_engine(decoder, 2).prefill([PROMPT], 4), expected, rtol=1e-3, atol=1e-3)
    engine.set_width(Width.full(spec))
    np.testing.assert_array_equal(engine.prefill([PROMPT], 4), dense)
    with pytest.raises(InputError, match=r"stores no width 0.5/0 .* stored are 0.3/0.3, 0.7/0.7"):
        load_width(tmp_path / "q", loaded, 0.5, 0.0)


def test_quantize_keeps_widths_and_generate_sets_them(tmp_path, capsys):
    spec = ModelSpec(**{**vars(spec_of("llama-grouped")), "vocab_size": 17})
    save_checkpoint(elastic_decoder(spec), tmp_path / "elastic", letter_tokenizer(), Record())
    assert main(["quantize", str(tmp_path / "elastic"), "-o", str(tmp_path / "q")]) == 0
    assert "2 stored widths" in capsys.readouterr().out
    said = {}
    for heads in ("0", "0.3", "0.7"):
        arguments = ["generate", str(tmp_path / "q"), "a b c", "--max-new-tokens", "12", "--heads", heads]
        assert main([*arguments, "--neurons", heads]) == 0
        said[heads] = capsys.readouterr().out
    assert len(set(said.values())) == 3
    assert main(["generate", str(tmp_path / "q"), "a b c", "--heads", "0.5"]) == 2
    assert "stored are 0.3/0.3, 0.7/0.7" in capsys.readouterr().err
    # one width alone has no others
    one = ["quantize", str(tmp_path / "elastic"), "-o", str(tmp_path / "one"), "--heads", "0.7", "--neurons", "0.7"]
    assert main(one) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "one"), "a b c", "--heads", "0.7"]) == 2
    assert "quantised at one width" in capsys.readouterr().err


def test_random_weights_are_still_known_to_be_random(tmp_path, capsys):
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "m", None, Record())
    assert main(["quantize", str(tmp_path / "m"), "--random-weights", "0", "-o", str(tmp_path / "q")]) == 0
    assert read_record(tmp_path / "q").weights == "random"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_embedding_that_is_no_head_is_not_streamed(precision):
    tied, untied = (dataclasses.replace(spec_of("gpt2"), tied_head=tied) for tied in (True, False))
    assert (
        len({NativeEngine(pack(filled_decoder(spec), precision)).weight_bytes_per_token() for spec in (tied, untied)})
        == 1
    )


def test_int4_calibration_on_the_command_line(tmp_path, capsys):
    spec = ModelSpec(**{**vars(spec_of("llama-grouped")), "vocab_size": 17})
    save_checkpoint(filled_decoder(spec), tmp_path / "m", letter_tokenizer(), Record())
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(rng.choice(list(LETTERS), 3000)))
    base = ["quantize", str(tmp_path / "m"), "--precision", "int4"]
    calibrated = ["--calibration", str(text), "--calibration-tokens", "1024"]
    assert main([*base, "-o", str(tmp_path / "a"), *calibrated]) == 0
    assert main([*base, "-o", str(tmp_path / "b"), "--no-calibration"]) == 0
    (step,) = read_record(tmp_path / "a").steps
    assert isinstance(step, Quantised) and step.tokens == 1024 and len(step.documents) == 1
    assert not read_record(tmp_path / "b").seen_documents()
    a, b = (load_quantised(tmp_path / name)[0] for name in "ab")
    assert not np.array_equal(a.array("layers.0.mlp.up_proj.packed"), b.array("layers.0.mlp.up_proj.packed"))
    np.testing.assert_array_equal(a.array("lm_head.packed"), b.array("lm_head.packed"))
    for wrong, word in (
        (["--precision", "int8", *calibrated], "int8 needs no calibration"),
        (["--calibration", str(tmp_path / "none.txt")], "no text file"),
        (["--calibration", str(text), "--calibration-tokens", "100000"], "too short"),
    ):
        capsys.readouterr()
        assert main([*base, "-o", str(tmp_path / "c"), *wrong]) == 2
        assert word in capsys.readouterr().err
    save_checkpoint(filled_decoder(spec), tmp_path / "mute", None, Record())
    mute = ["quantize", str(tmp_path / "mute"), "--precision", "int4", "-o", str(tmp_path / "c")]
    assert main([*mute, *calibrated]) == 2
    assert "--no-calibration" in capsys.readouterr().err
    assert main([*mute, "--calibration-tokens", "512"]) == 0  # what it writes itself needs no tokenizer
    (step,) = read_record(tmp_path / "c").steps
    assert isinstance(step, Quantised) and step.texts == "self" and step.tokens == 512 == step.own_text["tokens"]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A quantised model with a stored width."""
    decoder = elastic_decoder(ModelSpec(**{**vars(spec_of("llama-grouped")), "vocab_size": 17}))
    weights = pack(decoder, "int8")
    decoder.set_width(0.7, 0.7)
    save_quantised(weights, {(0.7, 0.7): pack_width(decoder, "int8")}, tmp_path / "q", letter_tokenizer(), Record())
    return tmp_path / "q"


def test_altered_and_truncated_files_are_refused(checkpoint, capsys):
    for name, extra in (("model", ()), ("width-0", ("--heads", "0.7", "--neurons", "0.7"))):
        file = checkpoint / f"{name}.native.safetensors"
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[-300] ^= 4
        damaged = [b"", whole[:6], whole[:100], whole[: len(whole) // 2], whole[:-64], whole + bytes(64), flipped]
        damaged += [whole.replace(b'"data_offsets": [0, ', b'"data_offsets": [9, ', 1)]
        damaged += [whole.replace(b"sentinel-native-2", b"sentinel-native-9")]
        damaged += [whole.replace(b'"dtype": "U8"', b'"dtype": "U9"', 1)]
        for bad in damaged:
            assert bytes(bad) != whole
            file.write_bytes(bad)
            assert file.name in refused(capsys, "generate", checkpoint, "a b c", *extra)
        file.write_bytes(whole)
        assert main(["generate", str(checkpoint), "a b c", "--max-new-tokens", "2", *extra]) == 0
        capsys.readouterr()
    (checkpoint / "width-0.native.safetensors").unlink()
    assert "can't be read" in refused(capsys, "generate", checkpoint, "a b", "--heads", "0.7", "--neurons", "0.7")


def test_files_of_another_model_are_refused(checkpoint, tmp_path, capsys):
    other = filled_decoder(ModelSpec(**{**vars(spec_of("gpt2")), "vocab_size": 17}))
    kept = (checkpoint / "model.native.safetensors").read_bytes()
    pack(other, "int8").save(checkpoint / "model.native.safetensors")
    assert "different models" in refused(capsys, "generate", checkpoint, "a b c")
    (checkpoint / "model.native.safetensors").write_bytes(kept)
    weights, _ = load_quantised(checkpoint)
    file = checkpoint / "width-0.native.safetensors"
    with pytest.raises(InputError, match=r"of another model|wrong size"):
        PackedWidth.load(file, other.spec, "int8")
    with pytest.raises(InputError, match="in int4"):
        PackedWidth.load(file, weights.spec, "int4")
    with pytest.raises(InputError, match="no whole model"):
        NativeWeights.load(file)
    with pytest.raises(InputError, match="no width"):
        PackedWidth.load(checkpoint / "model.native.safetensors", weights.spec, "int8")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"groups", b"grxups"))
    with pytest.raises(InputError, match="header is damaged"):
        PackedWidth.load(file, weights.spec, "int8")
    # tensors that do not fit the spec that the same file names
    spec = Width((1, 1, 1), (8, 8, 8)).of(weights.spec)
    NativeWeights(spec, "int8", weights.parts, weights.data).save(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="wrong size"):
        NativeWeights.load(tmp_path / "bad.safetensors")


def test_a_folder_that_an_earlier_version_wrote_still_loads(checkpoint, capsys):
    """Stored widths were called levels: in the configuration, in the name of the file and in its header."""
    ask = ["generate", str(checkpoint), "a b c", "--max-new-tokens", "8", "--heads", "0.7", "--neurons", "0.7"]
    assert main(ask) == 0
    said = capsys.readouterr().out
    file, config = checkpoint / "width-0.native.safetensors", json.loads((checkpoint / "config.json").read_text())
    tensors, metadata = read_packed(file)
    counts = json.loads(metadata["width"])
    earlier = {"n_kv_head": counts["groups"], "n_neuron": counts["neurons"]}
    header = {"level": json.dumps(earlier), "precision": metadata["precision"]}
    write_packed(checkpoint / "level-0.native.safetensors", tensors, header)
    file.unlink()
    config["levels"] = [{**config.pop("widths")[0], "file": "level-0.native.safetensors"}]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert main(ask) == 0
    assert capsys.readouterr().out == said


def test_too_long_a_text_is_refused(checkpoint, capsys):
    assert "context of 64" in refused(capsys, "generate", checkpoint, "a b c", "--max-new-tokens", "62")
    assert "runs on the CPU only" in refused(capsys, "generate", checkpoint, "a b c", "--device", "cuda")


def test_more_threads_than_cores_are_warned_of(checkpoint, capsys):
    cores = physical_cores()
    arguments = ["generate", str(checkpoint), "a b c", "--max-new-tokens", "3"]
    assert main([*arguments, "--threads", str(cores + 1)]) == 0
    many = capsys.readouterr()
    assert f"{cores + 1} threads on {cores} cores" in many.err
    assert main(arguments) == 0
    assert many.out == capsys.readouterr().out
    assert main([*arguments, "--threads", "63"]) == 0  # as many as the engine takes
    assert many.out == capsys.readouterr().out


def test_a_cpu_without_vectors_is_said_once(monkeypatch):
    said = say_nothing(monkeypatch)
    weights = pack(filled_decoder(spec_of("gpt2")), "int8")
    monkeypatch.setattr(native_engine, "HAS_FAST_VECTORS", False)
    for _ in range(2):
        NativeEngine(weights)
    assert len(said) == 1 and "slow" in said[0]
    native_engine._warn_of_slow_path.cache_clear()
    monkeypatch.setattr(native_engine, "HAS_FAST_VECTORS", True)
    NativeEngine(weights)
    assert len(said) == 1


def test_kernels_are_right_on_a_cpu_without_vectors(tmp_path):
    """The integer tiles, compiled for the plainest x86-64, against whole-number NumPy."""
    if not IS_X86:
        pytest.skip("only x86 has an older self to compile for")
    code = """
import numpy as np, native_oracle as t
from sentinel.infer.native import HAS_FAST_VECTORS
assert not HAS_FAST_VECTORS
rng = np.random.default_rng(0)
x = rng.standard_normal((3, 70)).astype(np.float32)
w = rng.integers(-127, 128, (19, 70)).astype(np.int8)
found, meant = t.run_int8(x, w, np.ones(19, np.float32))
exact = meant @ w.T.astype(float)
assert np.abs(found - exact).max() <= np.abs(exact).max() * 1e-6
f = rng.standard_normal((3, 70)).astype(np.float32)
g = rng.standard_normal((19, 70)).astype(np.float32)
every = np.arange(65536, dtype=np.uint16).view(np.float16)
every = every[np.isfinite(every)]
wide = np.concatenate([every.astype(np.float32), rng.standard_normal(8 * 500).astype(np.float32) * 1e-6, g.reshape(-1)[:8]])
narrow = np.zeros(wide.size, np.float16)
from sentinel.infer.native.kernels.intrinsics import halves
halves(wide.ctypes.data, narrow.ctypes.data, wide.size // 8 * 8)
assert np.array_equal(narrow[: wide.size // 8 * 8], wide.astype(np.float16)[: wide.size // 8 * 8])
for half in (False, True):
    rounded = g.astype(np.float16) if half else g
    assert np.abs(t.run_float(f, g, half) - f.astype(float) @ rounded.T.astype(float)).max() < 1e-4
"""
    env = {**os.environ, "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2", "NUMBA_CACHE_DIR": str(tmp_path)}
    env["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), env.get("PYTHONPATH", "")])  # noqa: PTH120
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
