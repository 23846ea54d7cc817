"""From importance scores to what is kept: one removal order gives a nested plan for every pruning ratio."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec

Scope = Literal["global", "uniform"]
Ranks = tuple[NDArray[np.int64], ...]
Losses = tuple[NDArray[np.float64], ...]

# Criteria whose scores of heads and of neurons are in the same unit: an estimate of the loss.
LOSS_CRITERIA = ("gradient", "fisher")


@dataclass(frozen=True)
class Scores:
    """Importance of every head group [n_kv_head] and neuron [intermediate_size], per layer; higher is kept longer."""

    criterion: str
    groups: tuple[NDArray[np.float64], ...]
    neurons: tuple[NDArray[np.float64], ...]


def spec_digest(spec: ModelSpec) -> str:
    """A short name of a shape, so that a plan is not used for another one."""
    return hashlib.sha256(spec.to_json().encode()).hexdigest()[:12]


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
        for layers, losses in ((plan.groups, self.group_losses), (plan.kept_neurons, self.neuron_losses)):
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
            _kept(self.group_ranks, heads),
            _kept(self.neuron_ranks, neurons),
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
    """What is kept: per layer the head groups and neurons, most important first."""

    spec_digest: str
    criterion: str
    heads: float
    neurons: float
    groups: tuple[tuple[int, ...], ...]
    kept_neurons: tuple[tuple[int, ...], ...] = field(repr=False)

    def check(self, spec: ModelSpec) -> None:
        """Raise `InputError` unless the plan was made for a model of this shape."""
        if self.spec_digest != spec_digest(spec):
            raise InputError("the pruning plan was made for a model of another shape; make a plan for this one")

    @property
    def group_counts(self) -> tuple[int, ...]:
        return tuple(len(kept) for kept in self.groups)

    @property
    def neuron_counts(self) -> tuple[int, ...]:
        return tuple(len(kept) for kept in self.kept_neurons)

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Inverse of `to_json`; `InputError` for anything else."""
        try:
            data: dict[str, Any] = json.loads(text)
            groups, neurons = (tuple(tuple(map(int, kept)) for kept in data.pop(n)) for n in ("groups", "kept_neurons"))
            return cls(**data, groups=groups, kept_neurons=neurons)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a pruning plan ({error})") from error


def removal_order(
    spec: ModelSpec, scores: Scores, *, scope: Scope = "global", floor_groups: int = 0, floor_neurons: int = 0
) -> RemovalOrder:
    """The order in which units go, lowest score first.

    ``scope`` "global" ranks all layers together; "uniform" takes the same share of every layer. A layer's best
    ``floor_groups`` groups and ``floor_neurons`` neurons go last, so that they stay as long as any others do.
    """
    return RemovalOrder(
        spec,
        scores.criterion,
        _ranks(scores.groups, scope, floor_groups),
        _ranks(scores.neurons, scope, floor_neurons),
        _losses(scores.groups, scores.criterion),
        _losses(scores.neurons, scores.criterion),
    )


def _losses(scores: Sequence[NDArray[np.float64]], criterion: str) -> Losses:
    """Scores as losses; where they are no losses, as shares of their sum."""
    lowest = min((float(values.min()) for values in scores if len(values)), default=0.0)
    shifted = [values - min(0.0, lowest) for values in scores]
    total = 1.0 if criterion in LOSS_CRITERIA else float(sum(values.sum() for values in shifted)) or 1.0
    return tuple(values / total for values in shifted)


def fit_target(
    order: RemovalOrder, cost: Callable[[PruningPlan], float], limit: float, most_heads: float, most_neurons: float
) -> PruningPlan:
    """The plan of least estimated loss whose ``cost`` is at most ``limit``, over a grid of ratios of 5 %.

    This is the idea of ZipLM (Kurtic et al. 2023): removal is paid by measured cost, not by counts. Raises `InputError`
    when even the ``most_heads`` and ``most_neurons`` that the order reaches do not suffice.
    """
    heads = np.unique(np.append(np.arange(0.0, most_heads, 0.05), most_heads)).round(4)
    neurons = np.unique(np.append(np.arange(0.0, most_neurons, 0.05), most_neurons)).round(4)
    plans = [order.plan(float(h), float(f)) for h in heads for f in neurons]
    fitting = [plan for plan in plans if cost(plan) <= limit]
    if not fitting:
        raise InputError(
            f"the target is out of reach: {most_heads:.0%} of heads and {most_neurons:.0%} of neurons removed give "
            f"{cost(plans[-1]):.4g} where {limit:.4g} is asked for"
        )
    return min(fitting, key=order.loss)


def _ranks(scores: Sequence[NDArray[np.float64]], scope: Scope, floor: int) -> Ranks:
    keys: list[tuple[bool, float, int, int]] = []
    for layer, values in enumerate(scores):
        if not np.isfinite(values).all():
            raise InputError(f"layer {layer}: an importance score is not finite; check the weights for NaN")
        place = np.argsort(np.argsort(values, kind="stable"), kind="stable")  # 0: least important of its layer
        for unit, value in enumerate(values):
            protected = bool(place[unit] >= len(values) - floor)
            measure = float(value) if scope == "global" else float((place[unit] + 0.5) / len(values))
            keys.append((protected, measure, layer, unit))
    ranks = tuple(np.zeros(len(values), dtype=np.int64) for values in scores)
    for rank, (_, _, layer, unit) in enumerate(sorted(keys)):
        ranks[layer][unit] = rank
    return ranks
