"""``sentinel info``: sizes on disk and in memory, stored ratios, and how a model was made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import spec_of
from helpers import filled_decoder, letter_tokenizer, refused

from sentinel.adapt.pruning.criteria import criterion_named
from sentinel.adapt.pruning.prune import make_elastic
from sentinel.adapt.pruning.subject import Subject
from sentinel.cli import main
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.infer.model_info import model_info
from sentinel.models.record import Pruned, Record
from sentinel.models.spec import ModelSpec

MADE = Record().then(Pruned(source="m", criterion="fisher", heads=(0.3, 0.7), neurons=(0.3, 0.7), elastic=True))


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> Path:
    """A tiny elastic model with two stored ratios."""
    dense = filled_decoder(ModelSpec(**{**vars(spec_of("llama-grouped")), "vocab_size": 17}))
    order = criterion_named("random").order(Subject(dense), 0.7, 0.7)
    plans = [order.plan(r, r) for r in (0.3, 0.7)]
    smaller = [filled_decoder(p.width.of(dense.spec)) for p in plans]
    folder = tmp_path_factory.mktemp("models") / "elastic"
    save_checkpoint(make_elastic(dense, order, plans, smaller), folder, letter_tokenizer(), MADE)
    return folder


@pytest.fixture(scope="module")
def quantised(elastic, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "int8"
    assert main(["quantize", str(elastic), "-o", str(folder), "-q"]) == 0
    return folder


def weight_files(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_an_elastic_model_tells_what_it_stores(elastic, tmp_path, capsys):
    assert main(["info", str(elastic), "--json", str(tmp_path / "i.json")]) == 0
    said = capsys.readouterr().out
    assert "30% of heads, 30% of neurons" in said and "stored ratios included" in said
    assert "1. pruned from m: 30, 70 % of heads and 30, 70 % of neurons as stored levels, fisher" in said
    found = json.loads((tmp_path / "i.json").read_text())
    assert found["disk_bytes"] == weight_files(elastic) and found["precision"] == "fp32"
    assert [(r["heads"], r["neurons"]) for r in found["stored"]] == [(0.3, 0.3), (0.7, 0.7)]
    assert found["weight_bytes"] == found["parameters"] * 4 + sum(r["n_byte"] for r in found["stored"])
    read = [found["weight_bytes_per_token"], *(r["weight_bytes_per_token"] for r in found["stored"])]
    assert read == sorted(read, reverse=True) and len(set(read)) == 3
    assert Record.from_dict(found["record"]) == MADE


def test_a_quantised_folder_is_told_of_without_torch(quantised):
    code = f"import sys; from sentinel.cli import main; main(['info', {str(quantised)!r}])"
    code += "; print([m for m in ('torch', 'transformers', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert said[-1] == "[]" and said[0] == "int8: llama, real weights, int8"
    assert any("MB in int8, stored ratios included" in line for line in said)
    assert any(line.startswith("2. quantised from elastic to int8") for line in said)


def test_sizes_of_a_quantised_folder_are_those_of_its_files(quantised, elastic):
    info, whole = model_info(str(quantised)), model_info(str(elastic))
    assert info.disk_bytes == weight_files(quantised)
    headers = 0.0
    for file in quantised.glob("*.safetensors"):
        headers += 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert info.memory_bytes == info.disk_bytes - headers < whole.memory_bytes
    assert [(r.heads, r.neurons) for r in info.stored] == [(r.heads, r.neurons) for r in whole.stored]
    assert all(r.n_byte > 0 and r.weight_bytes_per_token < info.weight_bytes_per_token for r in info.stored)
    assert info.kv_bytes_per_position * 2 == whole.kv_bytes_per_position  # half precision


def test_damaged_stored_ratios_are_refused_by_name(quantised, tmp_path, capsys):
    import shutil

    for number, widths in enumerate(("x", [{}], [{"heads": "a", "neurons": 0, "file": "f"}])):
        bad = tmp_path / str(number)
        shutil.copytree(quantised, bad)
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps({**config, "widths": widths}))
        assert "widths are damaged" in refused(capsys, "info", bad)


def test_the_model_behind_the_short_name_is_said(smollm2, capsys):
    assert main(["info", "smollm2-135m"]) == 0
    said = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct, de-quantised from Q4_1" in said and "how it was made" not in said


def test_drawn_weights_are_on_no_disk():
    assert model_info("gpt2", random_weights=0).disk_bytes is None
