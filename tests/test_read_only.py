"""A user who can write nowhere: neither to the installed package, nor to a home, nor to the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sentinel
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.files import cache_folder
from sentinel.formats import packages, places
from sentinel.infer.native import program

Run = Callable[..., "subprocess.CompletedProcess[str]"]
# Another user, without a name and a home, who can read everything.
USER = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
READS = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]


@pytest.fixture
def stranger(tmp_path) -> Run:
    """Run a command of an install that can't be written to, as a user who has no place of his own."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be another user")
    if subprocess.run([*USER, *READS, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this root can't let another user read")
    install = tmp_path / "install"
    source = Path(sentinel.__file__).parent
    shutil.copytree(source, install / "sentinel", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*arguments: str, **places: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(install), "OMP_NUM_THREADS": "1", **places}
        command = [*USER, *READS, sys.executable, "-m", "sentinel", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd="/")
        assert "Traceback" not in done.stderr
        assert not list(install.rglob("__pycache__"))
        return done

    return run


@pytest.fixture
def kernels(tmp_path) -> str:
    """A cache that holds the compiled kernels, and belongs to another."""
    program.program()
    shutil.copytree(program.code_folder(), tmp_path / "cache" / "kernels")
    return str(tmp_path / "cache")


@pytest.mark.parametrize("home", [{}, {"HOME": "/nonexistent"}])
def test_what_needs_no_cache_runs_without_a_word_of_it(home, stranger, worded, letters):
    assert stranger("info", worded, **home).stderr == ""
    assert stranger("cache", "list", **home).returncode == 0
    done = stranger("evaluate", worded, "--text", letters["test"], "--context", "16", **home)
    assert done.returncode == 0 and "SENTINEL_CACHE" not in done.stderr


@pytest.mark.parametrize("level", [1, 2])
def test_a_cache_of_another_is_read(level, stranger, kernels, worded):
    done = stranger("generate", worded, "a b", "--max-new-tokens", "3", "--level", str(level), SENTINEL_CACHE=kernels)
    assert done.returncode == 0 and "SENTINEL_CACHE" not in done.stderr and "Compiling" not in done.stderr


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_packed_weights_that_can_not_be_kept_are_one_note(precision, stranger, kernels, worded):
    arguments = ["generate", worded, "a b", "--max-new-tokens", "3", "--level", "3", "--precision", precision]
    done = stranger(*arguments, SENTINEL_CACHE=kernels)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert done.stderr.count("SENTINEL_CACHE") == 1
    assert "packed weights can't be kept" in done.stderr and "Permission denied" in done.stderr


def test_a_model_is_quantised_to_a_place_that_is_open(stranger, kernels, worded, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    made = str(tmp_path / "open" / "made")
    assert stranger("quantize", worded, "-o", made, SENTINEL_CACHE=kernels).returncode == 0
    assert stranger("generate", made, "a b", "--max-new-tokens", "3", SENTINEL_CACHE=kernels).returncode == 0
    refused = stranger("quantize", worded, "-o", str(tmp_path / "closed"), SENTINEL_CACHE=kernels)
    assert refused.returncode == 2 and "nothing can be written" in refused.stderr


@pytest.fixture
def no_cache(tmp_path, monkeypatch) -> None:
    """A file stands where the cache should be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SENTINEL_CACHE", str(tmp_path / "file"))


def test_kernels_that_can_not_be_kept_are_one_note(no_cache, worded, monkeypatch, capsys):
    with monkeypatch.context() as before:
        before.delenv("SENTINEL_CACHE")
        program.program()
        found = program._Object.read(program.code_folder() / f"{program._key()}.o")
    monkeypatch.setattr(program, "_compile", lambda: found)
    program.program.cache_clear()
    try:
        assert main(["generate", worded, "a b", "--max-new-tokens", "3", "--level", "2"]) == 0
    finally:
        program.program.cache_clear()
    errors = capsys.readouterr().err
    assert errors.count("SENTINEL_CACHE") == 1 and "compiled kernels can't be kept" in errors


def test_downloads_that_can_not_be_kept_are_of_this_process(no_cache, capsys):
    packages._stand_in.cache_clear()
    try:
        found = packages.place_of("texts/some", "train")
        with packages.kept_in_cache(found, "train") as temporary:
            (temporary / "train").mkdir()
        assert packages.place_of("texts/some", "train") == found and (found / "train").is_dir()
        assert cache_folder() not in found.parents
    finally:
        packages._stand_in.cache_clear()
    assert not found.exists()
    assert capsys.readouterr().err.count("SENTINEL_CACHE") == 1


def test_no_temporary_folder_is_one_sentence(no_cache, monkeypatch):
    packages._stand_in.cache_clear()

    def nowhere() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryDirectory", nowhere)
    with pytest.raises(InputError, match="set TMPDIR"):
        packages.smollm2_folder()


def test_a_hub_cache_that_can_not_be_written_to_is_named(monkeypatch):
    def forbidden(*_, **__) -> None:
        raise PermissionError(13, "Permission denied", "/closed")

    monkeypatch.setattr("huggingface_hub.snapshot_download", forbidden)
    with pytest.raises(InputError, match=r"/closed .Permission denied.; set HF_HOME"):
        places.locate("someone/something")
