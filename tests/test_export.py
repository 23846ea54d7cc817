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
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.exports import EXPORT_FORMATS
from sentinel.formats.hugging_face.export import SUPPORTS, family_model, write_hugging_face
from sentinel.formats.hugging_face.modeling_sentinel import OF_LAYERS
from sentinel.infer.generate import generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.models.decoder import Decoder
from sentinel.models.features import features
from sentinel.models.layer_spec import LayerSpec
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


@pytest.mark.parametrize("name", GENERATED)
def test_greedy_text_is_the_same_where_sentinel_is_not(exported, name):
    decoder = filled_decoder(UNEQUAL_SPECS[name])
    given, found = (load_file(exported / name.replace("-", "_") / f"{kind}.tensors") for kind in ("given", "found"))
    engine = make_engine(decoder, 1)
    steps = list(generate_tokens(engine, given["tokens"].tolist(), NEW))
    assert found["text"][:, 12:].tolist() == [list(row) for row in zip(*steps, strict=True)]
    alone = list(generate_tokens(engine, given["padded"][:1, 5:].tolist(), 8))
    assert found["padded text"][0, 12:].tolist() == [step[0] for step in alone]
