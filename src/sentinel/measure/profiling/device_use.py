"""What decoding asks of an accelerator: launches, busy time as Kineto (PyTorch's profiler) sees it, memory, bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import DeviceType

from sentinel.errors import InputError
from sentinel.infer.engine import Engine
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.measure.accelerator import device_peak_mb, reset_device_peak, synchronise

# Calls of the runtime that start work on a device, by how their names begin; a graph is one, whatever it holds.
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "hipLaunch", "hipGraphLaunch", "hipExtLaunch")
COPIES = 5  # timed ones, of which the fastest counts


@dataclass(frozen=True)
class DeviceUse:
    """Per decoded token, batch 1: ``wall_ms``; ``launches`` by the host; ``kernels`` that ran, and ``busy_ms`` in which
    they did. ``copy_gb_s``: bytes read and written by a copy within the device's memory. ``read_gb_s``: what a token reads
    at the least, over ``wall_ms``. ``peak_mb``: the most that tensors took, None where PyTorch does not count it."""

    device: str
    engine: str
    precision: str
    wall_ms: float
    launches: float
    kernels: float
    busy_ms: float
    copy_gb_s: float
    read_gb_s: float
    peak_mb: float | None

    @property
    def mbu(self) -> float:
        """Share of the bandwidth that a copy reaches (memory-bandwidth utilisation)."""
        return self.read_gb_s / self.copy_gb_s


@dataclass(frozen=True)
class Work:
    """Launches, kernels and their milliseconds of a profiled stretch."""

    launches: int
    kernels: int
    busy_ms: float


def device_use(engine: Engine, prompt: Sequence[int], new_tokens: int) -> DeviceUse:
    """Generate greedily from ``prompt``, once for the clock and once under Kineto, after one to warm up.

    Raises `InputError` for an engine on the CPU, where PyTorch launches nothing, and for fewer than 2 new tokens.
    """
    if engine.device == "cpu":
        raise InputError(f"{engine.name} runs on the CPU, which has no launches to count; give --device")
    if new_tokens < 2:
        raise InputError(f"launches per token need at least 2 new tokens, not {new_tokens}")
    return _use(engine, prompt, new_tokens, torch.device(engine.device))


def _use(engine: Engine, prompt: Sequence[int], new_tokens: int, device: torch.device) -> DeviceUse:
    def generate(count: int) -> Timings:
        timings = Timings()
        list(generate_tokens(engine, [prompt], count, timings=timings))
        synchronise(device)
        return timings

    generate(new_tokens)
    if device.type != "cpu":
        reset_device_peak(device)
    wall_ms = generate(new_tokens).tpot_ms
    assert wall_ms is not None
    peak = None if device.type == "cpu" else device_peak_mb(device)
    first, whole = (work_of(lambda n=n: generate(n), device) for n in (1, new_tokens))
    tokens = new_tokens - 1
    context = len(prompt) + new_tokens / 2
    return DeviceUse(
        device=str(device),
        engine=engine.name,
        precision=engine.precision,
        wall_ms=wall_ms,
        launches=(whole.launches - first.launches) / tokens,
        kernels=(whole.kernels - first.kernels) / tokens,
        busy_ms=(whole.busy_ms - first.busy_ms) / tokens,
        copy_gb_s=copy_bandwidth(device),
        read_gb_s=engine.step_bytes(1, context) / wall_ms / 1e6,
        peak_mb=peak,
    )


def work_of(call: Callable[[], object], device: torch.device) -> Work:
    """What ``call`` launched and what ran for it on ``device``."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        call()
        synchronise(device)
    return counted(found.events() or ())


def counted(events: Iterable[Any]) -> Work:
    """`Work` of the profiler's events: launches by name, kernels by being a device's own."""
    launches, ran = 0, []
    for event in events:
        if event.device_type != DeviceType.CPU:
            ran.append(event.time_range.elapsed_us())
        elif event.name.startswith(LAUNCHES):
            launches += 1
    return Work(launches, len(ran), sum(ran) / 1e3)


def copy_bandwidth(device: torch.device, n_byte: int = 1 << 28) -> float:
    """GB/s of a copy of ``n_byte`` bytes within a device's memory, those read and those written."""
    source = torch.zeros(n_byte, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(1 + COPIES):
        synchronise(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n_byte / min(seconds[1:]) / 1e9
