"""What machine this is: processor, memory bandwidth, library versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import time
from pathlib import Path

import numpy as np
import psutil
import torch

import sentinel
from sentinel.measure.results import Environment

LIBRARIES = ("torch", "transformers", "numpy", "safetensors", "tokenizers")


def cpu_name() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bandwidth_gb_s(megabytes: int = 256, repeats: int = 7) -> float:
    """Memory bandwidth of a copy with all of torch's threads, in GB/s (10^9 bytes, read plus written), median."""
    source = torch.ones(megabytes * 1_000_000 // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / float(np.median(seconds)) / 1e9


def describe(device: str = "cpu", *, measure_bandwidth: bool = True) -> Environment:
    """The environment, with the memory bandwidth measured now (CPU only)."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return Environment(
        cpu=cpu_name(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        bandwidth_gb_s=round(memory_bandwidth_gb_s(), 1) if measure_bandwidth and device == "cpu" else None,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        device=device,
        versions={"sentinel": sentinel.__version__, **versions},
        measured_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
