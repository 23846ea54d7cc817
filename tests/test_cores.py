"""How many cores a process may use: by its mask, by the hardware threads of a core, and by the quotas of its groups."""

from __future__ import annotations

import os

import pytest

from sentinel.cores import cpu_quota, physical_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 cores with two hardware threads each; files are added by path."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def add(**files):
        for path, text in files.items():
            place = tmp_path / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return tmp_path

    for cpu in range(16):
        siblings = f"{cpu % 8},{cpu % 8 + 8}\n"
        add(**{f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": siblings})
    return add


def test_hardware_threads_of_a_core_count_once(machine, monkeypatch):
    assert physical_cores(machine()) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 8, 1})
    assert physical_cores(machine()) == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_version_2_quota_in_a_container(machine, quota, cores):
    place = machine(**{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert physical_cores(place) == cores


def test_the_tightest_group_above_counts(machine):
    place = machine(
        **{
            "proc/self/cgroup": "0::/a.slice/b.scope\n",
            "sys/fs/cgroup/a.slice/b.scope/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a.slice/cpu.max": "300000 100000\n",
        }
    )
    assert cpu_quota(place) == 3.0 and physical_cores(place) == 3


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("seen_from", ["docker/f00", ""])  # in a container the own group is what is mounted
def test_version_1_quota(machine, mount, seen_from):
    place = machine(
        **{
            "proc/self/cgroup": "5:memory:/docker/f00\n4:cpu,cpuacct:/docker/f00\n0::/\n",
            f"sys/fs/cgroup/{mount}/{seen_from}/cpu.cfs_quota_us": "200000\n",
            f"sys/fs/cgroup/{mount}/{seen_from}/cpu.cfs_period_us": "100000\n",
        }
    )
    assert cpu_quota(place) == 2.0


def test_no_quota(machine):
    unlimited = {f"sys/fs/cgroup/cpu/cpu.cfs_{part}_us": text for part, text in (("quota", "-1"), ("period", "100000"))}
    place = machine(**{"proc/self/cgroup": "4:cpu:/\n", **unlimited})
    assert cpu_quota(place) is None
    assert cpu_quota(place / "nowhere") is None
