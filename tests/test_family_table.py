"""The table of docs/families.md is what the code does: run, change, read and write a tiny model of every config."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CONFIGS as FIRST_CONFIGS
from family_configs import CONFIGS, spec_named
from helpers import filled_decoder

from sentinel.errors import InputError
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.models.decoder import Decoder
from sentinel.models.families import FAMILIES, family_of
from sentinel.models.spec import ModelSpec

onnx_graph = pytest.importorskip("sentinel.formats.onnx_graph", reason="the extra 'runtimes' is not installed")
ctranslate2 = pytest.importorskip("sentinel.formats.ctranslate2", reason="the extra 'runtimes' is not installed")

DOCUMENT = Path(__file__).parents[1] / "docs" / "families.md"


def specs() -> dict[str, list[ModelSpec]]:
    """Those of the configs that the other tests of families take, by family."""
    found: dict[str, list[ModelSpec]] = defaultdict(list)
    for name, (family, _) in CONFIGS.items():
        found[family].append(spec_named(name))
    for config in FIRST_CONFIGS.values():
        found[config["model_type"]].append(family_of(config["model_type"]).spec_from_config(config))
    return found


def written(spec: ModelSpec, write: Callable[[Decoder], object]) -> str | None:
    """None when the model is written, else the feature for which it is refused."""
    try:
        write(filled_decoder(spec))
    except InputError as error:
        found = str(error)
        if "head_dim that" in found or "part of a head that" in found:  # of the tiny sizes here
            return None
        if "no architecture" in found:
            return "llama.cpp has no such architecture"
        return re.sub(r".*does not support (.*?)( in layer.*| of [^,]*, only of .*)?( \(nor .*)?$", r"\1", found)
    return None


def cell(refused: list[str | None]) -> str:
    """yes, no or part, with what is refused."""
    reasons = sorted({reason for reason in refused if reason is not None})
    if not reasons:
        return "yes"
    return f"{'no' if None not in refused else 'part'}: {', '.join(reasons)}"


def as_hugging_face(spec: ModelSpec) -> None:
    family_of(spec.family).config_from_spec(spec)


def test_the_table_says_what_is_so(tmp_path):
    from sentinel.formats.gguf.export import write_gguf

    writers: list[Callable[[Decoder], object]] = [
        lambda decoder: as_hugging_face(decoder.spec),
        lambda decoder: write_gguf(decoder, None, tmp_path / "m.gguf", "fp32"),
        lambda decoder: onnx_graph.write_onnx(decoder, tmp_path / "m.onnx", "fp32"),
        lambda decoder: ctranslate2.write_model(decoder, Path(tempfile.mkdtemp(dir=tmp_path)) / "m", None),
    ]
    shapes = defaultdict(list)
    for name, config in KNOWN_SHAPES.items():
        shapes[config["model_type"]].append(name)
    rows = []
    for family, found in sorted(specs().items()):
        cells = ["yes" if FAMILIES[family].gguf is not None else "no: llama.cpp has no such architecture"]
        cells += [cell([written(spec, write) for spec in found]) for write in writers]
        rows.append(f"| {family} | {', '.join(shapes[family])} | {' | '.join(cells)} |")
    assert set(specs()) == set(FAMILIES)
    there = [line for line in DOCUMENT.read_text("utf-8").splitlines() if re.match(r"\| (?!family |---)", line)]
    assert there == rows, "\n".join(rows)
