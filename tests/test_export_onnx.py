"""`sentinel export --format onnx`: what onnxruntime computes, of rows of unequal lengths too; and the script beside it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import unequal_spec
from family_configs import CONFIGS, spec_named
from helpers import byte_tokenizer, filled_decoder, largest_difference, refused, some_tokens

import sentinel
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.onnx_support import SUPPORTS
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.measure.method import random_prompts
from sentinel.measure.peers import PeerSettings, onnx_runtime
from sentinel.models.features import features
from sentinel.models.layer_spec import LayerSpec
from sentinel.models.spec import ModelSpec

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from sentinel.formats.onnx_export import write_onnx_folder
from sentinel.formats.run_onnx import OnnxDecoder

NEW = 64
TOLERANCE = {"fp32": 1e-4, "int8": 0.03, "int4": 0.3}  # of the largest logit


def fitting(spec: ModelSpec) -> ModelSpec:
    """The same model with heads of 16, turned whole, or of 32 where a part of them is turned, and room for some text."""

    def of(layer: LayerSpec) -> LayerSpec:
        attention, rope = layer.attention, layer.attention.rope
        partly = rope is not None and rope.dim_of(layer.head_dim) < layer.head_dim
        turned = None if rope is None else dataclasses.replace(rope, dim=16 if partly else None)
        return LayerSpec(dataclasses.replace(attention, head_dim=32 if partly else 16, rope=turned), layer.mlp)

    return dataclasses.replace(spec, max_seq_len=128, layers=tuple(of(layer) for layer in spec.layers))


def emptied(spec: ModelSpec) -> ModelSpec:
    """The same model with a first layer without heads, which adds a bias, and a second one without neurons."""
    first, second, *rest = spec.layers
    none = dataclasses.replace(first.attention, n_head=0, n_kv_head=0, out_bias=True)
    empty = dataclasses.replace(second.mlp, intermediate_size=0)
    return dataclasses.replace(spec, layers=(LayerSpec(none, first.mlp), LayerSpec(second.attention, empty), *rest))


NAMES = [name for name in CONFIGS if "longrope" not in name and name != "llama-dynamic"]
SPECS = {
    "unequal llama": fitting(unequal_spec("rope")),
    "unequal gpt2": fitting(unequal_spec("learned")),
    **{name: fitting(spec_named(name)) for name in NAMES},
    **{f"{name}, emptied": fitting(emptied(spec_named(name))) for name in ("gpt_neox", "olmo2", "gemma2", "phi")},
}


def written(spec: ModelSpec, folder: Path, precision: str = "fp32") -> OnnxDecoder:
    write_onnx_folder(filled_decoder(spec), None, folder, precision)
    return OnnxDecoder(folder, threads=1)


def test_the_cases_need_all_that_is_supported():
    needed = frozenset().union(*(features(spec) for spec in SPECS.values()))
    assert SUPPORTS - needed <= {"MLPs of several kinds", "no positions", "rotary scaling llama3"}


@pytest.mark.parametrize("name", SPECS)
def test_onnxruntime_gives_our_logits(name, tmp_path):
    spec = SPECS[name]
    decoder, session = filled_decoder(spec), written(spec, tmp_path)
    tokens = some_tokens(spec, length=12)
    with torch.no_grad():
        expected = decoder(tokens)
        assert largest_difference(torch.tensor(session.start(tokens.tolist())), expected) < 1e-4
        rows = [tokens[0].tolist(), tokens[1, :7].tolist()]
        found = torch.tensor(session.start(rows))
        assert largest_difference(found[1, :7], expected[1, :7]) < 1e-4
        for more in ([5, 6], [7, 8], [9, 10]):  # the shorter row's cache is filled up where it was padded
            logits = torch.tensor(session.step(more))
            rows = [[*row, token] for row, token in zip(rows, more, strict=True)]
            for row, found in zip(rows, logits, strict=True):
                assert largest_difference(found, decoder(torch.tensor([row]))[0, -1]) < 1e-4


@pytest.mark.parametrize("name", ["unequal llama", "unequal gpt2", "gemma2"])
def test_greedy_text_is_ours_whatever_stands_beside_it(name, tmp_path):
    spec = SPECS[name]
    tokens = some_tokens(spec, length=12)
    rows = [tokens[0].tolist(), tokens[1, :5].tolist()]
    engine = make_engine(filled_decoder(spec), 1)
    expected = [[step[0] for step in generate_tokens(engine, [row], NEW)] for row in rows]
    assert written(spec, tmp_path).generate(rows, NEW) == expected


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("size", [48, 64])  # the embedding is packed where its rows are whole blocks
def test_packed_weights_are_within_their_precision(precision, size, tmp_path):
    spec = dataclasses.replace(SPECS["unequal llama"], n_embd=size)
    decoder, session = filled_decoder(spec), written(spec, tmp_path, precision)
    tokens = some_tokens(spec, length=12)
    with torch.no_grad():
        expected = decoder(tokens)
    gap = (torch.tensor(session.start(tokens.tolist())) - expected).abs().max() / expected.abs().max()
    assert 1e-5 < gap < TOLERANCE[precision]
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes["model.onnx.data"] < (0.75 if size == 48 else 0.4) * spec.parameter_count() * 4


@pytest.mark.parametrize("variant", onnx_runtime.VARIANTS)
def test_peers_run_a_model_whose_layers_differ(variant, tmp_path):
    spec = SPECS["unequal llama"]
    decoder = filled_decoder(spec)
    prompts, new = random_prompts(spec.vocab_size, 2, 9), 12
    runner = onnx_runtime.prepare(decoder, tmp_path, variant, PeerSettings(1, 2, 9 + new))
    found = runner.generate(prompts, new, Timings())
    steps = list(generate_tokens(make_engine(decoder, 2), prompts, new))
    assert [len(row) for row in found] == [new] * 2
    if variant == "fp32":
        assert found == [list(row) for row in zip(*steps, strict=True)]


def test_the_script_in_the_folder_runs_it_without_torch_and_sentinel(tmp_path, capsys):
    spec = dataclasses.replace(SPECS["unequal llama"], vocab_size=257)
    model, target = tmp_path / "model", tmp_path / "made"
    save_checkpoint(filled_decoder(spec), model, byte_tokenizer())
    assert main(["export", str(model), "-o", str(target), "--format", "onnx"]) == 0
    assert f"python {target / 'run_onnx.py'}" in capsys.readouterr().out
    blocked = "import sys; sys.modules.update(dict.fromkeys(('sentinel', 'torch', 'transformers')))"
    code = f"{blocked}; sys.path.insert(0, {str(target)!r}); import run_onnx; run_onnx.main(['ab'], 8)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = sentinel.load(model).generate("ab", raw=True, max_new_tokens=8)
    assert done.stdout.decode() == f"ab{expected}\n"


def test_genai_is_told_the_names_of_the_graph(tmp_path):
    import onnx

    spec = SPECS["unequal llama"]
    written(spec, tmp_path)
    decoder = json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"]
    assert (decoder["num_key_value_heads"], decoder["head_size"], decoder["num_hidden_layers"]) == (3, 16, 4)
    graph = onnx.load(str(tmp_path / decoder["filename"]), load_external_data=False).graph
    for told, values in ((decoder["inputs"], graph.input), (decoder["outputs"], graph.output)):
        layers = [index for index, layer in enumerate(spec.layers) if layer.n_head]
        names = {name.replace("%d", str(index)) for name in told.values() for index in layers}
        assert names == {value.name for value in values}


def test_what_the_graph_can_not_hold_is_named(tmp_path, capsys):
    with pytest.raises(InputError, match="not the 8 of layer 0"):
        write_onnx_folder(filled_decoder(unequal_spec("rope")), None, tmp_path, "fp32")
    with pytest.raises(
        InputError, match="this ONNX graph can't do this model: it does not support rotary scaling long"
    ):
        write_onnx_folder(filled_decoder(spec_named("llama-longrope")), None, tmp_path, "fp32")
    save_checkpoint(filled_decoder(unequal_spec("rope")), tmp_path / "model")
    said = refused(capsys, "export", tmp_path / "model", "-o", tmp_path / "made", "--format", "onnx", "-q")
    assert "takes a head_dim that 16 divides" in said
    assert not (tmp_path / "made").exists() and np.all([not f.name.startswith(".") for f in tmp_path.iterdir()])


@pytest.mark.parametrize("name", ["unequal llama", "unequal gpt2", "gpt_neox, emptied"])
def test_genai_gives_our_tokens(name, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai")
    from helpers import byte_level

    from sentinel.models.tokenizer import TextTokenizer

    decoder = filled_decoder(dataclasses.replace(SPECS[name], vocab_size=300))
    write_onnx_folder(decoder, TextTokenizer(byte_level(), (0,)), tmp_path, "fp32")
    model = genai.Model(str(tmp_path))
    tokens = some_tokens(decoder.spec, batch=1, length=9)
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=41, min_length=41)
    generator = genai.Generator(model, options)
    generator.append_tokens(tokens.numpy().astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    steps = generate_tokens(make_engine(decoder, 1), tokens.tolist(), 32)
    assert [int(token) for token in generator.get_sequence(0)][9:] == [step[0] for step in steps]
