"""The optimisation levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sentinel.errors import InputError


@dataclass(frozen=True)
class Level:
    """An optimisation level: how a model is run. It never changes what the model computes."""

    number: int
    name: str
    description: str


LEVELS = (
    Level(0, "reference", "attention head by head in a loop, pruned heads masked"),
    Level(1, "default", "fused projections, scaled-dot-product attention, KV cache, eager"),
    Level(2, "aggressive", "whole decode step compiled, fp32"),
    Level(3, "extreme", "level 2 with quantised weights"),
)


def check_level(level: int) -> Level:
    """The level of that number; `InputError` when there is none."""
    if not 0 <= level < len(LEVELS):
        raise InputError(f"level {level} does not exist; the levels are 0 to {len(LEVELS) - 1}")
    return LEVELS[level]


def check_kv(kv: str | None, level: int, device: str) -> Literal["half", "int8"] | None:
    """What keys and values are kept in; `InputError` for what there is not, or not at that level on that device."""
    if kv is None:
        return None
    if kv not in ("half", "int8"):
        raise InputError(f"a KV cache in {kv!r} is not known; it is half or int8")
    if level != 3 or device != "cpu":
        raise InputError(f"level {level} on {device} has no KV cache in {kv}; level 3 on the CPU has, or leave kv out")
    return kv
