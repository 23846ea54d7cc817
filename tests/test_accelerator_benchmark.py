"""benchmarks/accelerator.sh runs to its end in tiny sizes on the CPU; what is counted is right of made-up events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder

from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.infer.opening import make_engine
from sentinel.infer.torch.static import StaticTorchEngine
from sentinel.measure.profiling import device_use
from sentinel.measure.profiling.device_use import Work, copy_bandwidth, counted
from sentinel.models.record import Record

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accelerator.sh"


@pytest.fixture
def shape(tmp_path) -> str:
    save_checkpoint(filled_decoder(spec_of("llama-grouped")), tmp_path / "shape", None, Record())
    return str(tmp_path / "shape")


def test_a_dry_run_says_parity_and_writes_every_suite(shape, tmp_path):
    done = subprocess.run(
        [str(SCRIPT), "--device", "cpu", "--tiny", "--shapes", shape, "-o", str(tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["left_out"] == [] and summary["environment"]["device"] == "cpu"
    assert [model["dtype"] for model in summary["models"]] == ["fp32", "bf16"]
    assert summary["models"][0]["parity"] == {"tokens": 6, "alike": 6, "alike_level_1": 6, "equal": True}
    rows = json.loads((tmp_path / "out" / "shape-fp32.json").read_text())["results"]
    assert {row["suite"] for row in rows} == {"pruning", "batch", "context"}
    assert {row["batch"] for row in rows if row["suite"] == "context"} == {2}


def event(name: str, microseconds: float, on_device: bool) -> SimpleNamespace:
    types = torch.autograd.DeviceType
    where = types.CUDA if on_device else types.CPU
    return SimpleNamespace(name=name, device_type=where, time_range=SimpleNamespace(elapsed_us=lambda: microseconds))


def test_launches_are_calls_of_the_runtime_and_kernels_are_the_devices_own():
    host = [event(name, 9.0, False) for name in ("aten::mm", "cudaLaunchKernel", "cudaGraphLaunch", "cudaEventRecord")]
    ran = [event("gemv", 250.0, True), event("softmax", 750.0, True)]
    assert counted([*host, *ran]) == Work(launches=2, kernels=2, busy_ms=1.0)


def test_use_is_per_token_and_the_prefill_is_taken_away(monkeypatch):
    engine, asked = StaticTorchEngine(filled_decoder(spec_of("llama-grouped"))), []

    def work(call, device):
        call()
        asked.append(device)
        return (Work(40, 40, 2.0), Work(48, 80, 6.0))[len(asked) - 1]  # one token, then five

    monkeypatch.setattr(device_use, "work_of", work)
    monkeypatch.setattr(device_use, "copy_bandwidth", lambda device: 100.0)
    found = device_use._use(engine, [5, 9, 2], 5, torch.device("cpu"))
    assert (found.launches, found.kernels, found.busy_ms) == (2.0, 10.0, 1.0)
    assert found.read_gb_s == pytest.approx(engine.step_bytes(1, 5.5) / found.wall_ms / 1e6)
    assert found.mbu == pytest.approx(found.read_gb_s / 100) and found.peak_mb is None


def test_the_profiler_is_asked_for_a_call():
    x = torch.ones(64, 64)
    assert device_use.work_of(lambda: x @ x, torch.device("cpu")) == Work(0, 0, 0.0)  # the CPU launches nothing


def test_a_copy_has_a_bandwidth():
    assert 0.01 < copy_bandwidth(torch.device("cpu"), 1 << 22) < 10_000


def test_the_cpu_has_no_launches_to_count():
    with pytest.raises(InputError, match="runs on the CPU, which has no launches"):
        device_use.device_use(make_engine(filled_decoder(spec_of("gpt2")), 1), [1, 2], 4)
