"""Level 3 quantises a model once: what is kept, for which model, how much of it, and how it is cleared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder, letter_tokenizer, refused

from sentinel.adapt.pruning.compact import in_nested_order
from sentinel.adapt.pruning.criteria import criterion_named
from sentinel.adapt.pruning.subject import Subject
from sentinel.cli import main
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.infer import packed_cache
from sentinel.infer.native.program import code_folder
from sentinel.infer.opening import make_engine, open_engine
from sentinel.models.elastic import StoredWidth
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec

TOKENS = [3, 7, 1, 9, 4]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, but for the kernels."""
    place = tmp_path / "cache"
    if code_folder().is_dir():
        shutil.copytree(code_folder(), place / "kernels")
    monkeypatch.setenv("SENTINEL_CACHE", str(place))
    monkeypatch.delenv("SENTINEL_CACHE_GB")
    return place


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What is told to the user."""
    lines: list[str] = []
    for module in ("infer.opening", "infer.packed_cache"):
        monkeypatch.setattr(f"sentinel.{module}.say", lines.append)
    return lines


def written(place: Path, seed: int = 0) -> str:
    spec = ModelSpec(**{**vars(spec_of("llama-grouped")), "vocab_size": 17})
    save_checkpoint(filled_decoder(spec, seed), place, letter_tokenizer(), Record())
    return str(place)


def logits(opened):
    return torch.tensor(opened.engine.prefill([TOKENS], 1))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_model_is_quantised_once(tmp_path, said, precision):
    model = written(tmp_path / "m")
    first = logits(open_engine(model, level=3, precision=precision))
    assert len(said) == 1 and "once" in said[0]
    second = open_engine(model, level=3, precision=precision)
    assert len(said) == 1
    assert torch.equal(logits(second), first)
    assert (second.name, second.weights, second.tokenizer.encode("a b")) == (
        "m",
        "real",
        letter_tokenizer().encode("a b"),
    )
    assert second.tokenizer.eos_ids == (0,)
    direct = make_engine(load_checkpoint(model), 3, precision=precision)
    assert torch.equal(torch.tensor(direct.prefill([TOKENS], 1)), first)


def test_a_warm_start_imports_neither_torch_nor_numba(tmp_path):
    model = written(tmp_path / "m")
    code = """
import sys
from sentinel.cli import main
assert main(sys.argv[1:]) == 0
print(sorted({"torch", "numba", "transformers"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, "generate", model, "a b", "--level", "3", "--max-new-tokens", "3"]
    found = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    texts, imported = zip(*(done.stdout.rsplit("\n", 2)[:2] for done in found), strict=True)
    assert texts[0] == texts[1]
    assert "torch" in imported[0] and imported[1] == "[]"
    assert "once" in found[0].stderr and "once" not in found[1].stderr


def test_other_weights_precisions_and_codes_are_other_entries(tmp_path, said, monkeypatch):
    model = written(tmp_path / "m")
    first = logits(open_engine(model, level=3))
    open_engine(model, level=3, precision="int4")
    assert len(said) == 2
    shutil.copytree(model, tmp_path / "same")
    assert torch.equal(logits(open_engine(str(tmp_path / "same"), level=3)), first)  # wherever the model is
    assert len(said) == 2
    shutil.rmtree(model)
    assert not torch.equal(logits(open_engine(written(Path(model), seed=1), level=3)), first)
    assert len(said) == 3
    monkeypatch.setattr(packed_cache, "_code_digest", lambda: b"another version")
    open_engine(model, level=3)
    assert len(said) == 4


def test_a_change_in_place_is_seen(tmp_path, said):
    model = Path(written(tmp_path / "m"))
    file = model / "model.safetensors"
    first = logits(open_engine(str(model), level=3))
    content = bytearray(file.read_bytes())
    content[-4:] = bytes(4)  # of the same size
    file.write_bytes(content)
    open_engine(str(model), level=3)
    assert len(said) == 2
    config = json.loads((model / "config.json").read_text())
    config["spec"]["norm"]["eps"] = 0.5
    (model / "config.json").write_text(json.dumps(config))
    assert not torch.equal(logits(open_engine(str(model), level=3)), first)


def test_digests_of_files_that_stay_are_remembered(tmp_path, monkeypatch):
    model = Path(written(tmp_path / "m"))
    for file in model.iterdir():
        os.utime(file, (1e9, 1e9))
    entry = packed_cache.entry_of(model, "int8", (0.0, 0.0))
    monkeypatch.setattr(packed_cache, "_content", lambda file: pytest.fail(f"{file} is read again"))
    assert packed_cache.entry_of(model, "int8", (0.0, 0.0)) == entry
    assert packed_cache.entry_of(model, "int4", (0.0, 0.0)) != entry


def test_widths_of_an_elastic_model(tmp_path, said):
    spec = ModelSpec(**{**vars(spec_of("llama-grouped")), "vocab_size": 17})
    order = criterion_named("random").order(Subject(filled_decoder(spec)), 0.5, 0.5)
    plan = order.plan(0.5, 0.5)
    elastic = in_nested_order(filled_decoder(spec), order)
    elastic.store_widths([StoredWidth(0.5, 0.5, plan.width, {})])
    save_checkpoint(elastic, tmp_path / "e", letter_tokenizer(), Record())
    elastic.set_width(0.5, 0.5)
    exact = torch.tensor(make_engine(elastic, 3).prefill([TOKENS], 1))
    whole = logits(open_engine(str(tmp_path / "e"), level=3))
    for _ in range(2):
        found = logits(open_engine(str(tmp_path / "e"), level=3, heads=0.5, neurons=0.5))
        assert torch.equal(found, exact) and not torch.equal(found, whole)
    assert len(said) == 2


def test_a_damaged_entry_is_made_again(tmp_path, said):
    model = written(tmp_path / "m")
    first = logits(open_engine(model, level=3))
    (entry,) = packed_cache.entries()
    file = entry / "model.native.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert torch.equal(logits(open_engine(model, level=3)), first)
    assert "damaged" in said[1]
    assert torch.equal(logits(open_engine(model, level=3)), first)
    assert len(said) == 3


def test_two_processes_at_once(tmp_path):
    model = written(tmp_path / "m")
    command = [sys.executable, "-m", "sentinel", "generate", model, "a b", "--level", "3", "--max-new-tokens", "3"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0] and len(texts) == 1
    assert len(packed_cache.entries()) == 1 and not list(packed_cache.scraps())


def test_a_cache_that_can_not_be_written_to_is_done_without(tmp_path, said, monkeypatch):
    model = written(tmp_path / "m")
    (tmp_path / "file").write_text("")
    first = logits(open_engine(model, level=3))
    monkeypatch.setattr("sentinel.infer.packed_cache.cache_folder", lambda: tmp_path / "file")
    assert torch.equal(logits(open_engine(model, level=3)), first)
    assert "can't be kept" in said[-1]


def test_what_was_used_least_lately_goes_first(tmp_path, monkeypatch):
    models = [written(tmp_path / f"m{seed}", seed) for seed in range(3)]
    entries = [packed_cache.entry_of(Path(model), "int8", (0.0, 0.0)) for model in models]
    for age, model in enumerate(models[:2]):
        open_engine(model, level=3)
        os.utime(entries[age], (1e9 + age, 1e9 + age))
    open_engine(models[0], level=3)  # now the second one is the older
    monkeypatch.setenv(packed_cache.LIMIT, str(2.5 * packed_cache.size_of(entries[0]) / 1e9))
    open_engine(models[2], level=3)
    assert [entry.exists() for entry in entries] == [True, False, True]
    monkeypatch.setenv(packed_cache.LIMIT, "0")
    open_engine(models[1], level=3)
    assert not entries[1].exists()


def test_the_limit_must_be_a_number(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(packed_cache.LIMIT, "much")
    assert "SENTINEL_CACHE_GB is 'much'" in refused(capsys, "cache", "list")


def test_the_cache_is_listed_and_cleared_of_what_is_ours(tmp_path, cache, capsys):
    open_engine(written(tmp_path / "m"), level=3)
    (entry,) = packed_cache.entries()
    (cache / "kernels" / "notes.o").write_text("mine")
    (cache / "smollm2-135m").mkdir()
    for name in ("config.json", "tokenizer_config.json", "notes.txt"):
        (cache / "smollm2-135m" / name).write_text("{}")
    capsys.readouterr()
    assert main(["cache", "list"]) == 0
    listed = capsys.readouterr().out
    assert "m, int8 for level 3" in listed and "compiled kernels" in listed and entry.name in listed
    assert main(["cache", "clear"]) == 0
    assert not entry.exists() and list((cache / "kernels").glob("?" * 24 + ".o"))
    assert main(["cache", "clear", "--all"]) == 0
    assert "smollm2-135m is left" in capsys.readouterr().out
    assert [file.name for file in cache.rglob("*") if file.is_file()] == ["notes.o", "notes.txt"]
    assert main(["cache", "list"]) == 0


def test_the_clock_of_generate_starts_after_compiling(tmp_path, monkeypatch):
    from sentinel.infer.generate import Timings, generate_tokens
    from sentinel.infer.native import engine

    order: list[str] = []
    compiled = engine.program
    monkeypatch.setattr(engine, "program", lambda: (order.append("compiled"), compiled())[1])
    opened = open_engine(written(tmp_path / "m"), level=3)
    passes = opened.engine.profile()
    order.append("clock")
    list(generate_tokens(opened.engine, [TOKENS], 2, timings=Timings()))
    assert order == ["compiled", "clock"]
    assert any(passes.values())  # and after a first pass
