"""What machine this is: processor, memory bandwidth, library versions."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

import sentinel
from sentinel.cores import physical_cores
from sentinel.infer.native.memory import buffer
from sentinel.measure.results import Environment

LIBRARIES = ("torch", "transformers", "numpy", "safetensors", "tokenizers")
OPTIONAL_LIBRARIES = ("llama-cpp-python", "onnxruntime", "ctranslate2", "openvino")


def cpu_name() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bandwidth_gb_s(megabytes: int = 256, repeats: int = 7) -> float:
    """Memory bandwidth with all of torch's threads, in GB/s (10^9 bytes): the larger of a copy (read plus written) and of
    a sum (read only), the best of ``repeats``, since a roofline is what can be reached and others use the memory too. In
    huge pages, as the native engine's weights: small ones are read more slowly.
    """
    source, target = (torch.from_numpy(buffer(megabytes * 1_000_000, huge=True).view(np.float32)) for _ in range(2))
    source.fill_(1.0)
    target.fill_(0.0)
    tests: list[tuple[int, Callable[[], object]]] = [
        (2 * source.nbytes, lambda: target.copy_(source)),
        (source.nbytes, source.sum),
    ]
    best = 0.0
    for moved, run in tests:
        run()
        seconds: list[float] = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        best = max(best, moved / min(seconds) / 1e9)
    return best


@dataclass(frozen=True)
class ProcessorTime:
    """Ticks of all processors since the system started, and those of them that the host gave to others."""

    total: int
    stolen: int


def processor_time() -> ProcessorTime | None:
    """The counters of ``/proc/stat``; None where there are none."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [
        int(value) for value in stat.read_text().splitlines()[0].split()[1:9]
    ]  # user ... steal; guests are in user
    return ProcessorTime(sum(ticks), ticks[7])


def steal_share(before: ProcessorTime | None, after: ProcessorTime | None) -> float | None:
    """The share of processor time that the host gave to others between two looks."""
    if before is None or after is None or after.total <= before.total:
        return None
    return round((after.stolen - before.stolen) / (after.total - before.total), 4)


def frequency_mhz() -> float | None:
    """The processors' present frequency, where the system tells."""
    found = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return round(found.current) if found is not None and found.current else None


def describe(device: str = "cpu") -> Environment:
    """The environment, but for its memory bandwidth, which takes a measurement."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    for name in OPTIONAL_LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return Environment(
        cpu=cpu_name(),
        cores=physical_cores(),
        threads=torch.get_num_threads(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        bandwidth_gb_s=None,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        device=device,
        versions={"sentinel": sentinel.__version__, **versions},
        measured_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        cpu_mhz=None if (mhz := frequency_mhz()) is None else (mhz,),
    )
