"""What machine this is: processor, caches, memory, library versions."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import sentinel
from sentinel.cores import physical_cores
from sentinel.measure.accelerator import device_label
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


def last_level_cache_mb(root: Path = Path("/")) -> float | None:
    """MB of the largest caches of the processors that this process may use, each counted once; None where Linux' sysfs,
    looked for below ``root``, does not tell.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    found: dict[tuple[int, str], int] = {}
    for cpu in allowed:
        for cache in (root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                level, kind, size, shared = (
                    (cache / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
                )
                if kind != "Instruction":
                    found[int(level), shared] = int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[-1]]
    last = max((level for level, _ in found), default=None)
    return None if last is None else sum(size for (level, _), size in found.items() if level == last) / 1e6


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
    """The environment."""
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
        device=device_label(device),
        versions={"sentinel": sentinel.__version__, **versions},
        measured_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        last_level_cache_mb=None if (cache := last_level_cache_mb()) is None else round(cache, 1),
        cpu_mhz=None if (mhz := frequency_mhz()) is None else (mhz,),
    )
