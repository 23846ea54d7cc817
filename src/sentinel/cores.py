"""How many processor cores this process may use: by its affinity mask, and by the quota of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def physical_cores(root: Path = ROOT) -> int:
    """Cores this process may run on: hardware threads of one core count once, and a quota below that is the limit.

    ``root`` is where ``/proc`` and ``/sys`` are found.
    """
    quota = cpu_quota(root)
    cores = _allowed_cores(root)
    # rounded down: threads beyond the quota are stopped for a while, and the others wait for them
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def _allowed_cores(root: Path) -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(str(cpu) if siblings is None else siblings)
    return max(1, len(cores))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the control groups of this process allow it, the tightest of them; None without a
    limit. Reads ``cpu.max`` (version 2) and ``cpu.cfs_quota_us`` (version 1), as of Linux' cgroup documentation.
    """
    limits = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            limits += [_quota_of((_read(folder / "cpu.max") or "").split()) for folder in _groups(root, "", path)]
        elif "cpu" in controllers.split(","):
            names = [controllers, "cpu"] if controllers != "cpu" else ["cpu"]
            for folder in (place for name in names for place in _groups(root, name, path)):
                values = (_read(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period"))
                limits.append(_quota_of([value for value in values if value is not None]))
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(root: Path, mount: str, path: str) -> Iterator[Path]:
    """The folder of a control group and those above it; in a container only the mount's own may be there."""
    place = PurePosixPath(path.strip("/"))
    for group in (place, *place.parents):
        yield root / "sys/fs/cgroup" / mount / group


def _quota_of(values: list[str]) -> float | None:
    """Quota over period, both in microseconds; None for "max", -1, and what is no limit."""
    try:
        quota, period = (int(value) for value in values)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
