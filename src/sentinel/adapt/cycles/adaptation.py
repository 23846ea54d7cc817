"""The record of an adaptation, ``adaptation.json``: what was asked for, and what every cycle did and measured.

While it goes on, the record and all weights stand in a file of a state folder, so that it can be resumed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from sentinel.adapt.cycles.budget import CostTable
from sentinel.adapt.cycles.masked import Head
from sentinel.errors import InputError
from sentinel.files import write_into
from sentinel.formats.weight_files import open_safetensors, write_tensors
from sentinel.models.rows import held

SCHEMA_VERSION = 1
FILE, WEIGHTS = "adaptation.json", "state.safetensors"

RECORD = "record"  # in the metadata of the weights

HeadMap = list[list[float | None]]  # by layer and head group of the unpruned model; None where it was not measured


@dataclass(frozen=True)
class Cycle:
    """One cycle of prune, measure, grow and learn.

    ``kept`` is by layer the head groups that take part at its end; ``pruned`` and ``regrown`` are what changed on the way.
    ``held_out_nll`` and ``held_out_kl`` (to the unpruned model), nats a token, are of its end; ``pruned_nll`` is after
    pruning and before learning. ``cost`` is in the budget's unit, ``latency_ms`` the predicted time of a decoded token
    (None where no latencies were measured). ``training_loss`` is the mean over its ``updates``, ``seconds`` by kind of
    work.

    Signals: ``importance`` of what took part before pruning (estimated loss of its removal), ``entropy`` of its attention
    after pruning (1: uniform), ``gate_gradient`` of the divergence from the unpruned model by every gate after pruning,
    closed ones included (negative: opening it lowers the loss).
    """

    number: int
    kept: list[list[int]]
    pruned: list[Head]
    regrown: list[Head]
    pruned_nll: float
    held_out_nll: float
    held_out_kl: float
    cost: float
    parameters: int
    latency_ms: float | None
    updates: int
    training_loss: float
    seconds: dict[str, float]
    importance: HeadMap
    entropy: HeadMap
    gate_gradient: HeadMap

    @property
    def heads(self) -> int:
        """Head groups that take part."""
        return sum(len(groups) for groups in self.kept)


@dataclass
class Adaptation:
    """A whole adaptation. ``groups`` are the head groups of each layer of the unpruned model, whose held-out negative
    log-likelihood is ``dense_nll``, known after the first cycle. ``identity`` tells model and text apart, ``latencies``
    are the milliseconds of a decoded token that were measured, ``stopped`` says why it ended (None while it goes on)."""

    model: str
    budget: str
    unit: str
    limit: float
    identity: str
    settings: dict[str, Any]
    groups: list[int]
    dense_nll: float | None = None
    latencies: CostTable | None = None
    cycles: list[Cycle] = field(default_factory=list)
    stopped: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def best(self) -> Cycle:
        """The cycle whose model did best on held-out text."""
        return min(self.cycles, key=lambda cycle: cycle.held_out_nll)

    @property
    def seconds(self) -> float:
        """Time of all cycles."""
        return sum(sum(cycle.seconds.values()) for cycle in self.cycles)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: object = "the record") -> Adaptation:
        """Inverse of `to_json`; `InputError` names ``source`` when it is something else."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data["schema_version"] != SCHEMA_VERSION:
                raise InputError(
                    f"{source} has version {data['schema_version']!r}; this version of sentinel reads {SCHEMA_VERSION}"
                )
            cycles = [_cycle(cycle) for cycle in data.pop("cycles")]
            times = data.pop("latencies")
            return cls(**data, cycles=cycles, latencies=None if times is None else _costs(times))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{source} is not the record of an adaptation ({error})") from error


def _cycle(data: dict[str, Any]) -> Cycle:
    heads: dict[str, Any] = {name: [Head(*head) for head in data.pop(name)] for name in ("pruned", "regrown")}
    return Cycle(**data, **heads)


def _costs(data: dict[str, Any]) -> CostTable:
    return CostTable(data["fixed"], tuple(tuple(layer) for layer in data["layers"]))


def is_state(folder: Path) -> bool:
    """True for the folder of an unfinished adaptation."""
    return (folder / WEIGHTS).exists()


def write_state(folder: Path, record: Adaptation, weights: Mapping[str, Tensor]) -> None:
    """Write what an adaptation goes on from after a cycle, whole or not at all: weights and record are one file."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    with write_into(folder) as temporary:
        write_tensors(tensors, temporary / WEIGHTS, {RECORD: record.to_json()})


def read_state(folder: Path) -> tuple[Adaptation, dict[str, Tensor]]:
    """Inverse of `write_state`; `InputError` when the file is damaged or of something else."""
    file = folder / WEIGHTS
    weights = held(open_safetensors(file))
    with safe_open(file, framework="pt") as opened:
        record = (opened.metadata() or {}).get(RECORD, "")
    return Adaptation.from_json(record, file), weights


def read_adaptation(folder: Path) -> Adaptation:
    """The record in ``folder``; `InputError` when there is none."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} has no {FILE}, so it was not made by 'sentinel adapt'") from error
    return Adaptation.from_json(text, folder / FILE)
