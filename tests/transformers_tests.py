"""The tests that Hugging Face's own models pass, from the source distribution of the transformers that is installed.

It is downloaded once, from the package index, and only its ``tests`` are kept, in the cache folder. It carries neither
``tests/generation`` nor ``tests/exporters`` nor ``tests/utils``: what it imports from there is stood in for here.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from sentinel.files import cache_folder

PACKAGE = "tests_of_transformers"
# What any config takes.
COMMON = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
STAND_INS = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": COMMON},
}


def folder() -> Path:
    """Where the tests lie, downloaded if they are not there yet."""
    release = version("transformers")
    kept = cache_folder() / f"transformers-tests-{release}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as place:
            wanted = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation", f"transformers=={release}"]
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", place, *wanted], check=True)
            with tarfile.open(next(Path(place).glob("transformers-*.tar.gz"))) as archive:
                inside = f"transformers-{release}/tests"
                archive.extractall(place, [m for m in archive if m.name.startswith(f"{inside}/")], filter="data")
            (Path(place) / inside / "__init__.py").touch()  # which the sources have
            (Path(place) / inside).rename(kept)
    return kept


def _package(name: str, places: list[str]) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = places
    sys.modules[name] = made
    return made


def module_of(name: str) -> ModuleType:
    """One file of them as a module: ``module_of("test_modeling_common")``."""
    if PACKAGE not in sys.modules:
        _package(PACKAGE, [str(folder())])
        for stand_in, names in STAND_INS.items():
            parent, _, _ = stand_in.partition(".")
            _package(f"{PACKAGE}.{parent}", [])
            vars(_package(f"{PACKAGE}.{stand_in}", [])).update(names)
    return importlib.import_module(f"{PACKAGE}.{name}")
