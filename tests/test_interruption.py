"""Ctrl-C in the middle of a long command: it says what is kept, and by which command it goes on."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from sentinel.cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def interrupted(arguments: list[str], begun: Callable[[], bool]) -> str:
    """The last line of a command that got Ctrl-C once it had ``begun``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sentinel", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have made it ignored
    )
    while not begun():
        assert process.poll() is None, process.stderr and process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert errors.count("sentinel: interrupted; ") == 1
    return errors.splitlines()[-1]


def go_on(said: str) -> None:
    """Run the command that a message ends with."""
    assert main([*shlex.split(said.rpartition(": sentinel ")[2]), "-q"]) == 0


def test_sweep_goes_on(worded, letters, tmp_path):
    file = tmp_path / "sweep.json"
    arguments = ["sweep", "--models", worded, "--criteria", "random", "--seeds", "0,1,2,3,4,5,6,7", "--workers", "1"]
    arguments += ["--heads", "0.34", "--eval-tokens", "64", "--context", "32", "--calibration-tokens", "512"]
    arguments += ["--calibration", letters["calibration"], "--text", letters["test"], "-o", str(file)]
    said = interrupted(arguments, file.exists)
    assert f"the jobs that are done are in {file}; go on with: sentinel sweep" in said
    go_on(said)


def test_prune_tells_of_its_statistics(worded, letters, tmp_path):
    file = tmp_path / "statistics"
    arguments = ["prune", worded, "--heads", "0.5", "--criterion", "fisher", "-o", str(tmp_path / "pruned")]
    arguments += ["--calibration", letters["calibration"], "--calibration-tokens", "2048", "--text", letters["test"]]
    said = interrupted([*arguments, "--statistics", str(file)], file.exists)
    assert f"the calibration so far is in {file}; the same command goes on: sentinel prune" in said
