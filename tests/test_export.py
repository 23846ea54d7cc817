"""`sentinel export` for Hugging Face: what is written loads and generates where this package is not installed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import unequal_spec
from family_configs import CONFIGS, spec_named
from helpers import byte_tokenizer, filled_decoder, largest_difference, refused, some_tokens
from safetensors.torch import load_file, save_file

import sentinel
from sentinel.adapt.integration import integrate
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.exports import EXPORT_FORMATS
from sentinel.formats.folder import EXPORTED_TYPE
from sentinel.formats.hugging_face.export import SUPPORTS, family_model, write_hugging_face
from sentinel.formats.hugging_face.modeling_sentinel import OF_LAYERS, SentinelDecoderConfig
from sentinel.infer.generate import generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.models.decoder import Decoder
from sentinel.models.features import features
from sentinel.models.layer_spec import LayerSpec
from sentinel.models.record import Pruned, Record
from sentinel.models.spec import ModelSpec

NEW = 64
GENERATED = ("gpt2", "llama", "mistral-window", "olmo2-bias", "gemma2", "gemma3", "phi", "qwen3", "starcoder2")
# Runs where no module of this package can be imported: writes logits and greedy tokens of every folder that it is given.
ELSEWHERE = """
import sys, json, torch
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sentinel":
            raise ImportError("this package is not installed here")
sys.meta_path.insert(0, Blocked())
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
for place in sys.argv[1:]:
    folder = Path(place)
    given = load_file(folder / "given.tensors")
    trusted = "auto_map" in json.loads((folder / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted).eval()
    tokens, padded, mask = given["tokens"], given["padded"], given["mask"]
    with torch.no_grad():
        found = {"logits": model(tokens).logits, "padded": model(padded, attention_mask=mask).logits}
        if "new" in given:
            new = int(given["new"])
            found["text"] = model.generate(tokens, max_new_tokens=new, **options)
            found["padded text"] = model.generate(padded, attention_mask=mask, max_new_tokens=8, **options)
    save_file({name: t.contiguous() for name, t in found.items()}, folder / "found.tensors")
assert not any(name.partition(".")[0] == "sentinel" for name in sys.modules)
"""


def unequal(spec: ModelSpec) -> ModelSpec:
    """The same model with layers that differ: the first without heads, the second without neurons, and biases."""
    layers = list(spec.layers)
    groups = max(1, layers[1].n_kv_head - 1)
    none = {"n_head": 0, "n_kv_head": 0, "out_bias": True}
    fewer = {"n_head": groups * layers[1].group_size, "n_kv_head": groups}
    layers[0] = LayerSpec(dataclasses.replace(layers[0].attention, **none), layers[0].mlp)
    empty = dataclasses.replace(layers[1].mlp, intermediate_size=0)
    layers[1] = LayerSpec(dataclasses.replace(layers[1].attention, **fewer), empty)
    smaller = dataclasses.replace(layers[2].mlp, intermediate_size=17, down_bias=True)
    layers[2] = LayerSpec(dataclasses.replace(layers[2].attention, out_bias=True), smaller)
    return dataclasses.replace(spec, layers=tuple(layers))


def specs() -> dict[str, ModelSpec]:
    """Every feature of every family, in layers that differ, by name."""
    named = {"llama": unequal_spec("rope"), "gpt2": unequal_spec("learned")}
    every = {name: spec_named(name) for name in CONFIGS if name != "llama-dynamic"}
    found = named | {name: unequal(spec) for name, spec in every.items()}
    return {name: dataclasses.replace(spec, max_seq_len=128) for name, spec in found.items()}


UNEQUAL_SPECS = specs()
DENSE = {name: spec_named(name) for name in CONFIGS if name != "llama-dynamic"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """All of them as folders, each with what another process computed of it."""
    root = tmp_path_factory.mktemp("exported")
    folders = []
    for name, spec in UNEQUAL_SPECS.items():
        folders.append(root / name.replace("-", "_"))
        folders[-1].mkdir()
        decoder = filled_decoder(spec)
        write_hugging_face(decoder, None, folders[-1], "fp32")
        tokens = some_tokens(spec, length=12)
        padded = tokens.clone()
        padded[0, :5] = 0
        mask = torch.ones_like(tokens)
        mask[0, :5] = 0
        given = {"tokens": tokens, "padded": padded, "mask": mask}
        if name in GENERATED:
            given["new"] = torch.tensor(NEW)
        save_file(given, folders[-1] / "given.tensors")
    code = [sys.executable, "-c", ELSEWHERE, *map(str, folders)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(root / "modules")}
    done = subprocess.run(code, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    return root


def test_the_cases_need_all_that_is_supported():
    needed = frozenset().union(*(features(spec) for spec in (*UNEQUAL_SPECS.values(), *DENSE.values())))
    assert SUPPORTS - needed <= {"MLPs of several kinds", "no positions", "rotary scaling llama3"}


@pytest.mark.parametrize("name", UNEQUAL_SPECS)
def test_unequal_layers_are_the_same_where_sentinel_is_not(exported, name):
    spec = UNEQUAL_SPECS[name]
    decoder = filled_decoder(spec)
    given, found = (load_file(exported / name.replace("-", "_") / f"{kind}.tensors") for kind in ("given", "found"))
    with torch.no_grad():
        assert largest_difference(found["logits"], decoder(given["tokens"])) < 1e-4
        padded = decoder(given["padded"], attention_mask=given["mask"])
        alone = decoder(given["padded"][:1, 5:])
    assert largest_difference(found["padded"][1], padded[1]) < 1e-4
    assert largest_difference(found["padded"][:1, 5:], alone) < 1e-4


@pytest.mark.parametrize("name", UNEQUAL_SPECS)
def test_unequal_layers_are_read_back(exported, name):
    folder = exported / name.replace("-", "_")
    (folder / "modeling_sentinel.py").write_text("raise AssertionError('nothing of the folder is run')")
    decoder, found = filled_decoder(UNEQUAL_SPECS[name]), load_checkpoint(folder)
    assert found.spec.family == decoder.spec.family and features(found.spec) <= features(decoder.spec)
    sizes = [(y.n_head, y.n_kv_head, y.intermediate_size) for y in decoder.spec.layers]
    assert [(y.n_head, y.n_kv_head, y.intermediate_size) for y in found.spec.layers] == sizes
    tokens = some_tokens(decoder.spec, length=12)
    with torch.no_grad():
        assert largest_difference(found(tokens), decoder(tokens)) < 1e-5


@pytest.mark.parametrize("name", GENERATED)
def test_greedy_text_is_the_same_where_sentinel_is_not(exported, name):
    decoder = filled_decoder(UNEQUAL_SPECS[name])
    given, found = (load_file(exported / name.replace("-", "_") / f"{kind}.tensors") for kind in ("given", "found"))
    engine = make_engine(decoder, 1)
    steps = list(generate_tokens(engine, given["tokens"].tolist(), NEW))
    assert found["text"][:, 12:].tolist() == [list(row) for row in zip(*steps, strict=True)]
    alone = list(generate_tokens(engine, given["padded"][:1, 5:].tolist(), 8))
    assert found["padded text"][0, 12:].tolist() == [step[0] for step in alone]


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_model_is_of_its_familys_own_class(name):
    decoder = filled_decoder(DENSE[name])
    model = family_model(decoder, torch.float32)
    assert type(model).__module__.startswith("transformers.")
    tokens = some_tokens(decoder.spec)
    with torch.no_grad():
        assert largest_difference(model(tokens).logits, decoder(tokens)) < 1e-5


def with_biases(decoder: Decoder) -> Decoder:
    """As compensation leaves it: a bias of every output projection, none of queries, keys, values and neurons."""
    layers = tuple(
        LayerSpec(dataclasses.replace(y.attention, out_bias=True), dataclasses.replace(y.mlp, down_bias=True))
        for y in decoder.spec.layers
    )
    return filled_decoder(dataclasses.replace(decoder.spec, layers=layers))


def test_biases_that_a_class_has_together_are_filled_up_with_zeros():
    llama, qwen = (with_biases(filled_decoder(spec_named(name))) for name in ("llama-yarn", "qwen3"))
    model = family_model(llama, torch.float32)
    tokens = some_tokens(llama.spec)
    with torch.no_grad():
        assert largest_difference(model(tokens).logits, llama(tokens)) < 1e-5
    assert model.config.attention_bias and not model.model.layers[0].self_attn.q_proj.bias.any()
    with pytest.raises(InputError, match="bias"):
        family_model(qwen, torch.float32)  # whose MLP has none


def test_what_single_layers_have_is_told_by_their_number(tmp_path):
    write_hugging_face(filled_decoder(unequal_spec()), None, tmp_path, "fp32")
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(OF_LAYERS) <= set(config)
    assert config["per_layer_config"]["1"] == {"intermediate_size": 33, "skip": ["attention"]}
    assert config["per_layer_config"]["2"] == {"num_attention_heads": 3, "num_key_value_heads": 3, "skip": ["mlp"]}
    assert {"modeling_sentinel.py", "model.safetensors", "generation_config.json"} <= {
        f.name for f in tmp_path.iterdir()
    }


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("name", ["gemma", "llama"])
def test_matrices_are_halves_and_norms_that_need_it_are_not(name, precision, dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    decoder = filled_decoder(UNEQUAL_SPECS[name])
    write_hugging_face(decoder, None, tmp_path, precision)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert model.dtype == dtype and model.layers[2].attn.out_proj.weight.dtype == dtype
    assert model.layers[0].attn_norm.weight.dtype == torch.float32
    tokens = some_tokens(decoder.spec)
    with torch.no_grad():
        assert largest_difference(model(tokens).logits.float(), decoder(tokens)) < 0.1


def test_a_folder_that_was_altered_is_refused_by_name(saved, tmp_path):
    made = sentinel.export(saved, tmp_path / "made")
    file = made.path / "config.json"
    config = json.loads(file.read_text())
    assert config["model_type"] == EXPORTED_TYPE == SentinelDecoderConfig.model_type
    table = {**config["rotary_tables"][0], "frequencies": [0.5] * len(config["rotary_tables"][0]["frequencies"])}
    altered = {
        "lacks 'family'": {name: value for name, value in config.items() if name != "family"},
        "do not follow from its settings": {**config, "rotary_tables": [table]},
        "lacks 'settings'": {**config, "rotary_tables": [{"frequencies": table["frequencies"]}]},
        "other layers than the model": {**config, "per_layer_config": {"7": {}}},
        "a layer skips 'all'": {**config, "per_layer_config": {"1": {"skip": "all"}}},
        "does not fit the specification": {**config, "per_layer_config": {}},
    }
    for said, changed in altered.items():
        file.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=said):
            sentinel.load(made.path)


def test_an_exported_folder_keeps_the_record_and_runs_at_every_level(saved, tmp_path):
    step = Pruned(source="dense", criterion="random", heads=(0.5,), neurons=(0.5,))
    model = sentinel.load(saved)
    model.loaded.record = model.decoder.record = Record(steps=(step,))
    made = sentinel.export(model, tmp_path / "made")
    again = sentinel.load(made.path)
    assert again.record.steps == (step,)
    options = {"raw": True, "max_new_tokens": 8}
    expected = model.generate("ab", **options)
    assert [again.generate("ab", level=level, **options) for level in (0, 1, 2)] == [expected] * 3


# --- the command and the verb ---------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    """A checkpoint whose layers differ, with a tokenizer of bytes."""
    decoder = filled_decoder(dataclasses.replace(unequal_spec(), vocab_size=257))
    save_checkpoint(decoder, tmp_path / "model", byte_tokenizer())
    return tmp_path / "model"


def test_the_command_says_how_to_run_what_it_wrote(saved, tmp_path, capsys):
    target = tmp_path / "made"
    assert main(["export", str(saved), "-o", str(target)]) == 0
    printed = capsys.readouterr().out
    first, _, usage = printed.partition("\n")
    assert first.startswith(f"{target}: ") and "hugging-face in fp32" in first
    code = f"{usage}\nids = tokenizer('ab', return_tensors='pt').input_ids\nprint(model(ids).logits[0, -1].argmax().item())"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    model = sentinel.load(saved)
    with torch.no_grad():
        expected = model.decoder(torch.tensor([model.require_tokenizer().encode("ab")])).argmax(-1)[0, -1].item()
    assert int(done.stdout) == expected


def test_what_stands_there_is_refused_and_replaced_only_with_force(saved, tmp_path, capsys):
    target = tmp_path / "made"
    sentinel.export(saved, target)
    capsys.readouterr()
    assert "is not empty" in refused(capsys, "export", saved, "-o", target)
    note = target / "note.txt"
    note.write_text("mine")
    made = sentinel.export(saved, target, precision="bf16", force=True)
    capsys.readouterr()
    assert made.precision == "bf16" and note.read_text() == "mine"
    assert "is the model that is read" in refused(capsys, "export", saved, "-o", saved, "--force")
    (target / "config.json").write_text("{}")
    assert "is in the way" in refused(capsys, "export", saved, "-o", target, "--force", "-q")


def test_a_stored_width_is_exported(tmp_path, elastic, capsys):
    whole, narrow = (tmp_path / name for name in ("whole", "narrow"))
    model = sentinel.load(elastic)
    sentinel.export(model, whole)
    model.export(narrow, heads=0.5, neurons=0.5)
    expected = model.decoder.at_width(0.5, 0.5)
    from transformers import AutoModelForCausalLM

    tokens = some_tokens(expected.spec)
    for folder, decoder in ((narrow, expected), (whole, model.decoder)):
        found = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            assert largest_difference(found(tokens).logits, decoder(tokens)) < 1e-4
    capsys.readouterr()
    assert "is not stored" in refused(capsys, "export", elastic, "-o", tmp_path / "no", "--heads", "0.1", "-q")
    assert not (tmp_path / "no").exists()


def test_an_interrupted_export_leaves_nothing(saved, tmp_path, monkeypatch):
    from sentinel.models.tokenizer import TextTokenizer

    def interrupted(self: object, folder: Path) -> None:
        assert (folder / "model.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(TextTokenizer, "copy_files", interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        sentinel.export(saved, tmp_path / "made")
    assert sorted(tmp_path.iterdir()) == before


def test_bad_input_is_refused_by_name(saved, tmp_path, capsys):
    target = tmp_path / "made"
    said = refused(capsys, "export", saved, "-o", target, "--precision", "int3")
    assert "format hugging-face has no precision 'int3'; it has fp32, bf16, fp16" in said
    with pytest.raises(InputError, match="format 'pickle' is not known; it is hugging-face, gguf, onnx"):
        sentinel.export(saved, target, "pickle")
    integrated = tmp_path / "integrated"
    save_checkpoint(integrate(filled_decoder(unequal_spec()), "all"), integrated)
    assert "has baseline integration and skips" in refused(capsys, "export", integrated, "-o", target, "-q")
    assert "ends with .gguf" in refused(capsys, "export", saved, "-o", target, "--format", "gguf")
    (tmp_path / "there.gguf").write_text("mine")
    assert "exists" in refused(capsys, "export", saved, "-o", tmp_path / "there.gguf", "--format", "gguf")
    assert not target.exists()


def test_an_extra_that_is_missing_is_named(saved, tmp_path, capsys, monkeypatch):
    onnx = dataclasses.replace(EXPORT_FORMATS["onnx"], modules=("no_such_module",))
    monkeypatch.setitem(EXPORT_FORMATS, "onnx", onnx)  # pyright: ignore[reportArgumentType]
    said = refused(capsys, "export", saved, "-o", tmp_path / "made", "--format", "onnx")
    assert "no_such_module, which is not installed; pip install 'sentinel-ai[runtimes]'" in said
