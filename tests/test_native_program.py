"""Compiled code on disk: what is damaged is compiled again, what can't be linked never ends the process."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sentinel.infer.native import program


def test_damaged_code_counts_as_none(tmp_path):
    path = tmp_path / "x.o"
    program._Object(b"\x7fELF code\n more", "symbol", ("erff",)).write(path)
    assert program._Object.read(path) == program._Object(b"\x7fELF code\n more", "symbol", ("erff",))
    good = path.read_bytes()
    for bad in (b"", good[:-1], good[:10], good.replace(b"more", b"mode"), b"\xff" + good, b"[]\n"):
        path.write_bytes(bad)
        assert program._Object.read(path) is None
    assert program._Object.read(tmp_path / "missing.o") is None


def test_a_symbol_that_is_missing_is_named():
    with pytest.raises(RuntimeError, match="no_such_function_anywhere"):
        program._provide(("no_such_function_anywhere",))


def test_code_is_kept_for_exactly_these_sources(monkeypatch):
    key = program._key()
    assert key == program._key()
    monkeypatch.setattr(program, "CPU_NAME", "another")
    assert program._key() != key


def test_compiled_code_depends_on_no_other_file():
    """What decides about the machine code is in the folder of the kernels, whose digest names it."""
    folder = Path(program.__file__).parent / "kernels"
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2 and not (node.module or "").startswith("sentinel"), file
