"""From a removal order to what is kept: one order gives a nested plan for every pruning ratio."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentinel.adapt.pruning.digest import digests, spec_digest
from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Kept, Width

Ranks = tuple[NDArray[np.int64], ...]
Losses = tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class RemovalOrder:
    """When each unit goes: rank 0 first. Ranks count over the whole model, groups and neurons apart."""

    spec: ModelSpec
    criterion: str
    group_ranks: Ranks
    neuron_ranks: Ranks
    group_losses: Losses
    neuron_losses: Losses

    def loss(self, plan: PruningPlan) -> float:
        """Estimated loss of a plan of this order: the sum over what it removes."""
        total = 0.0
        for layers, losses in ((plan.kept.groups, self.group_losses), (plan.kept.neurons, self.neuron_losses)):
            for kept, values in zip(layers, losses, strict=True):
                total += float(values.sum() - values[list(kept)].sum())
        return total

    def plan(self, heads: float, neurons: float = 0.0) -> PruningPlan:
        """Keep all but the first ``heads`` and ``neurons`` (ratios 0..1). Plans of one order are nested."""
        return PruningPlan(
            spec_digest(self.spec),
            self.criterion,
            check_ratio("heads", heads),
            check_ratio("neurons", neurons),
            Kept(_kept(self.group_ranks, heads), _kept(self.neuron_ranks, neurons)),
        )


def check_ratio(name: str, ratio: float) -> float:
    """A pruning ratio; `InputError` outside of 0..1."""
    if not 0 <= ratio <= 1:
        raise InputError(f"--{name} must be a ratio between 0 and 1, not {ratio}")
    return float(ratio)


def _kept(ranks: Ranks, ratio: float) -> tuple[tuple[int, ...], ...]:
    removed = round(ratio * sum(len(r) for r in ranks))
    kept = []
    for r in ranks:
        order = np.argsort(-r, kind="stable")
        kept.append(tuple(int(unit) for unit in order if r[unit] >= removed))
    return tuple(kept)


@dataclass(frozen=True)
class PruningPlan:
    """What is ``kept`` of a model: head groups and neurons, most important first."""

    spec_digest: str
    criterion: str
    heads: float
    neurons: float
    kept: Kept = field(repr=False)

    def check(self, spec: ModelSpec) -> None:
        """Raise `InputError` unless the plan was made for a model of this shape."""
        if self.spec_digest not in digests(spec):
            raise InputError("the pruning plan was made for a model of another shape; make a plan for this one")

    @property
    def width(self) -> Width:
        """How much stays."""
        return self.kept.width

    def to_json(self) -> str:
        data = {name: value for name, value in vars(self).items() if name != "kept"}
        return json.dumps({**data, "groups": self.kept.groups, "kept_neurons": self.kept.neurons})

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Inverse of `to_json`; `InputError` for anything else."""
        try:
            data: dict[str, Any] = json.loads(text)
            groups, neurons = (tuple(tuple(map(int, kept)) for kept in data.pop(n)) for n in ("groups", "kept_neurons"))
            return cls(**data, kept=Kept(groups, neurons))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a pruning plan ({error})") from error
