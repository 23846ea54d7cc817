"""What packing takes: the packed weights, and a little of the model at a time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LLAMA, spec_of
from family_configs import CONFIGS, hugging_face_model
from helpers import filled_decoder
from safetensors.torch import save_file

import sentinel
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.gguf.export import write_gguf
from sentinel.formats.random_weights import random_decoder, random_weights
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.formats.sources import open_stored
from sentinel.infer.native import weights as native_weights
from sentinel.infer.opening import open_engine
from sentinel.infer.pack import pack, tell_memory
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec

MEDIUM = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "tie_word_embeddings": True,
}
TINY = {**LLAMA, "num_key_value_heads": 6, "tie_word_embeddings": True}
PEAK = """
import sys
import sentinel
from sentinel.infer.opening import open_engine
from sentinel.measure.memory import peak_rss_mb, reset_peak
from sentinel.progress import console
console.quiet = True
what, warm, model = sys.argv[1:]
def run(model, **options):
    if what == "quantize":
        return sentinel.quantize(model).quantised.native.n_byte
    return open_engine(model, level=3, **options).engine.packed.n_byte
run(warm)  # what is imported and compiled at first use
reset_peak()
before = peak_rss_mb()
size = run(model, random_weights=0) if what == "random" else run(model)
print(size / 1e6, peak_rss_mb() - before)
"""


def in_shards(config, folder: Path) -> str:
    """A folder of random bf16 weights, written shard by shard: a file per layer."""
    spec = family_of(config["model_type"]).spec_from_config(config)
    family, places = family_of(config["model_type"]), {}
    folder.mkdir()
    for number in range(-1, spec.n_layer):
        names = {name for rule in family.rules(spec) for name in rule.theirs if ("{i}" in name) == (number >= 0)}
        shapes = {}
        for name in names:
            width, inner = config["hidden_size"], config["intermediate_size"]
            shapes[name.format(i=number)] = (
                (config["vocab_size"], width) if "embed" in name
                else (width,) if "norm" in name
                else (inner, width) if "gate" in name or "up" in name
                else (width, inner) if "down" in name
                else (width, width)
            )  # fmt: skip
        file = f"model-{number + 2:05}.safetensors"
        save_file({n: (0.02 * torch.randn(s)).bfloat16() for n, s in shapes.items()}, folder / file)
        places |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux alone")
@pytest.mark.parametrize("what", ["quantize", "level 3", "random"])
def test_the_peak_is_the_packed_size_and_little_more(what, tmp_path):
    model, warm = in_shards(MEDIUM, tmp_path / "m"), in_shards(TINY, tmp_path / "w")
    done = subprocess.run([sys.executable, "-c", PEAK, what, warm, model], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packed, peak = (float(number) for number in done.stdout.split())
    assert packed > 50
    assert packed < peak < 1.25 * packed + 80  # in bf16 the whole model takes twice the packed size


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", ["phi3", "gptj", "gemma3"])
def test_packed_in_pieces_it_is_the_same(family, precision, tmp_path, monkeypatch):
    hugging_face_model(*CONFIGS[family]).save_pretrained(tmp_path)
    whole = pack(load_checkpoint(tmp_path), precision)
    monkeypatch.setattr(native_weights, "PIECE", 1000)
    found = pack(open_stored(str(tmp_path)).stored, precision)
    assert found.parts == whole.parts
    np.testing.assert_array_equal(found.data, whole.data)


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_a_gguf_file_is_packed_in_pieces(kind, tmp_path, monkeypatch):
    write_gguf(filled_decoder(spec_of("llama-grouped")), None, tmp_path / "m.gguf", kind)
    whole = pack(sentinel.load(tmp_path / "m.gguf").decoder, "int8")
    monkeypatch.setattr(native_weights, "PIECE", 1000)
    found = pack(open_stored(str(tmp_path / "m.gguf")).stored, "int8")
    np.testing.assert_array_equal(found.data, whole.data)


def test_pickled_weights_are_packed_in_pieces(tmp_path, monkeypatch):
    model = hugging_face_model(*CONFIGS["qwen2"])
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(native_weights, "PIECE", 1000)
    found = pack(open_stored(str(tmp_path)).stored, "int8")
    np.testing.assert_array_equal(found.data, pack(load_checkpoint(tmp_path), "int8").data)


def test_random_weights_are_the_same_in_any_order():
    spec = spec_of("llama-grouped")
    exact, state = random_decoder(spec, 5).state_dict(), random_weights(spec, 5).whole_state()
    for name in reversed(list(state)):
        for start in (64, 0, 32):
            assert torch.equal(state[name][start : start + 32], exact[name][start : start + 32])
    generator = torch.Generator().manual_seed(5)
    for name, tensor in exact.items():
        if tensor.dim() > 1:
            assert torch.equal(tensor, torch.empty(tensor.shape).normal_(0.0, 0.02, generator=generator)), name


def test_random_weights_are_drawn_for_level_3():
    packed = open_engine("gpt2", level=3, random_weights=3).engine.packed
    assert packed is not None
    np.testing.assert_array_equal(packed.data, pack(sentinel.load("gpt2", random_weights=3).decoder, "int8").data)


def test_what_is_not_finite_is_refused_by_the_name_of_the_file(tmp_path):
    decoder = filled_decoder(spec_of("gpt2"))
    with torch.no_grad():
        decoder.blocks[1].mlp.up_proj.weight[3, 3] = torch.nan
    save_checkpoint(decoder, tmp_path / "m")
    with pytest.raises(InputError, match=r"m: tensor 'layers.1.mlp.up_proj.weight' holds NaN or infinity"):
        sentinel.quantize(tmp_path / "m")


def test_stored_widths_are_read_one_after_the_other(tmp_path):
    spec = ModelSpec(**{**vars(spec_of("llama-grouped")), "vocab_size": 17})
    decoder = filled_decoder(spec)
    save_checkpoint(decoder, tmp_path / "m", None, Record())
    stored = open_stored(str(tmp_path / "m")).stored
    with pytest.raises(InputError, match="this model stores no widths"):
        stored.set_width(0.5)


def test_a_large_model_is_announced(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("sentinel.infer.pack.say", lines.append)
    config = KNOWN_SHAPES["llama-3.2-3b"]
    spec = family_of("llama").spec_from_config(config)
    tell_memory(spec, "int8")
    tell_memory(spec, "int4", dense=True)
    tell_memory(spec_of("gpt2"), "int8")
    assert lines == [
        "packing in int8 takes about 3.7 GB of memory", "packing in int4 takes about 15.5 GB of memory"
    ]  # fmt: skip
    assert dataclasses.replace(spec, tied_head=True) == spec
