"""The record of an adaptation, ``adaptation.json``: what was asked for, and what every cycle did and measured."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from sentinel.adapt.masked import Head
from sentinel.errors import InputError

SCHEMA_VERSION = 1
FILE = "adaptation.json"

HeadMap = list[list[float | None]]  # by layer and head group of the unpruned model; None where it was not measured


@dataclass(frozen=True)
class Cycle:
    """One cycle of prune, measure, grow and learn.

    ``kept`` is by layer the head groups that take part at its end; ``pruned`` and ``regrown`` are what changed on the way.
    ``held_out_nll`` and ``held_out_kl`` (to the unpruned model), nats a token, are of its end; ``pruned_nll`` is after
    pruning and before growing and learning. ``cost`` is in the budget's unit, ``latency_ms`` the predicted time of a
    decoded token (None where no latencies were measured).

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
    log-likelihood is ``dense_nll``. ``stopped`` says why it ended; it is None while it goes on."""

    model: str
    budget: str
    unit: str
    limit: float
    identity: str
    settings: dict[str, float]
    groups: list[int]
    dense_nll: float
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
            return cls(**data, cycles=cycles)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{source} is not the record of an adaptation ({error})") from error


def _cycle(data: dict[str, Any]) -> Cycle:
    heads = {name: [Head(*head) for head in data.pop(name)] for name in ("pruned", "regrown")}
    return Cycle(**data, **heads)
