"""What runs with the base dependencies alone, and what is said where the extra "full" is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sentinel.cli import FULL

ROOT = Path(__file__).parents[1]

# Runs the command line as if the packages of the extra "full" were not installed.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from sentinel.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_without(missing: frozenset[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(missing=set(missing))
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def quantised(worded: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "int8"
    command = ["quantize", worded, "-o", str(folder), "-q"]
    subprocess.run([sys.executable, "-m", "sentinel", *command], check=True, capture_output=True)
    return folder


def test_a_quantised_folder_runs_without_the_extra_full(quantised: Path) -> None:
    done = run_without(FULL, "generate", str(quantised), "hello", "--max-new-tokens", "3")
    assert done.returncode == 0, done.stderr
    assert "level 3 int8" in done.stderr


@pytest.mark.parametrize("package", sorted(FULL))
def test_a_missing_package_of_the_extra_is_one_sentence(package: str, worded: str, tmp_path: Path) -> None:
    arguments = {
        "gguf": ("info", str(tmp_path / "model.gguf")),
        "altair": ("profile", worded, "--level", "1", "--rounds", "1", "--chart", str(tmp_path / "c.html")),
        "vl_convert": ("profile", worded, "--level", "1", "--rounds", "1", "--chart", str(tmp_path / "c.svg")),
        "huggingface_hub": ("info", "no-such/model"),
        "transformers": ("bench", "decode", worded, "--quick"),
    }.get(package, ("info", worded))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    done = run_without(frozenset({package}), *arguments)
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith(f"sentinel: without {package} only quantised folders run here")
    )
    assert "Traceback" not in done.stderr


def test_the_extra_holds_what_the_command_line_calls_the_extra() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["full"]
    packages = {entry.partition(">")[0].replace("-", "_").removesuffix("_python") for entry in extra}
    assert packages - {"sentencepiece", "protobuf", "tiktoken"} == FULL  # these only transformers imports
