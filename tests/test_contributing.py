"""CONTRIBUTING.md tells the truth: the files are there, and what it says is enough is enough."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import LLAMA, spec_of
from helpers import filled_decoder, some_tokens

from sentinel.formats.random_weights import random_decoder
from sentinel.models import families
from sentinel.models.families import family_of
from sentinel.models.features import ALL, features, require_supported

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOY = """
import dataclasses

from sentinel.models.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    model_type="toy",
    read=lambda config: llama.llama_like(config, attention={"qk_norm": "head", "window": 4}),
    write=llama.write_llama_like,
)
"""


def test_every_file_that_it_names_is_there():
    named = re.findall(r"`((?:src|tests|docs|\.ci)/[^`]*)`", TEXT) + re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(named) > 15
    for path in named:
        place = ROOT / path.replace("NAME.py", "").replace("precision_", "")
        assert place.exists(), path


def test_a_family_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    found = families._found()
    monkeypatch.setattr(families, "FAMILIES", found)
    monkeypatch.delitem(sys.modules, f"{families.__name__}.toy")
    spec = family_of("toy").spec_from_config({**LLAMA, "model_type": "toy"})
    assert {"attention windows", "norms of queries and keys, per head"} <= features(spec)
    assert family_of("toy").spec_from_config(family_of("toy").config_from_spec(spec)) == spec
    with torch.no_grad():
        assert random_decoder(spec, 0)(some_tokens(spec)).isfinite().all()


def test_a_feature_that_is_not_supported_is_refused_by_name():
    spec = spec_of("llama-grouped")
    require_supported(spec, ALL, "everything")
    with pytest.raises(Exception, match=r"the toy can't do this model: it does not support grouped heads"):
        require_supported(spec, ALL - {"grouped heads"}, "the toy")


def test_a_suite_is_a_module_and_a_line(monkeypatch):
    from sentinel.measure import suites

    toy = ModuleType("sentinel.measure.suites.toy")
    toy.run = lambda request: [request]  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, toy.__name__, toy)
    monkeypatch.setitem(suites.SUITES, "toy", suites.Suite("toy", "nothing", {"rounds": 1}))
    assert suites.suite_of("toy").run("asked") == ["asked"]  # pyright: ignore[reportArgumentType]


def test_a_precision_is_a_file_and_its_kernels():
    from sentinel.infer.native import kernels, precisions
    from sentinel.infer.native.kernels.names import Kind

    for name, storage in precisions.PRECISIONS.items():
        assert Kind[name.upper()] == storage.KIND
        for package, file in ((precisions, f"{name}.py"), (kernels, f"precision_{name}.py")):
            assert (Path(package.__path__[0]) / file).exists()


def test_folded_scales_are_all_that_there_are():
    """What formats take from the table of tensors has no gate left to apply."""
    from sentinel.models.tensors import with_gates_folded

    decoder = filled_decoder(spec_of("gpt2"))
    assert not any(name.endswith("gate") for name in with_gates_folded(decoder.state_dict(), decoder.spec))


def test_a_format_is_a_writer_and_a_line(tmp_path, monkeypatch):
    import sentinel
    from sentinel.formats import exports
    from sentinel.formats.checkpoint import save_checkpoint

    toy = ModuleType("sentinel.formats.toy")
    toy.write = lambda decoder, tokenizer, path, precision: path.write_text(precision)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, toy.__name__, toy)
    line = exports.ExportFormat("toy", ("big", "small"), f"{toy.__name__}:write", lambda path: f"run {path}", ".toy")
    monkeypatch.setitem(exports.EXPORT_FORMATS, "toy", line)  # pyright: ignore[reportArgumentType]
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "model")
    made = sentinel.export(tmp_path / "model", tmp_path / "m.toy", "toy", precision="small")
    assert (tmp_path / "m.toy").read_text() == "small" and made.usage == f"run {tmp_path / 'm.toy'}"
