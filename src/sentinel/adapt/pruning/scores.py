"""From importance scores to a removal order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sentinel.adapt.pruning.plan import Losses, Ranks, RemovalOrder
from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec

Scope = Literal["global", "uniform"]


@dataclass(frozen=True)
class Scores:
    """Importance of every head group [n_kv_head] and neuron [intermediate_size], per layer; higher is kept longer.

    ``are_losses`` says that those of heads and of neurons are in one unit, an estimate of the loss.
    """

    criterion: str
    groups: tuple[NDArray[np.float64], ...]
    neurons: tuple[NDArray[np.float64], ...]
    are_losses: bool = False

    @classmethod
    def of_tensors(
        cls,
        criterion: str,
        groups: Sequence[Tensor],
        neurons: Sequence[Tensor],
        *,
        over: int = 1,
        are_losses: bool = False,
    ) -> Scores:
        """Scores from tensors per layer, divided by ``over`` (at least 1), a number of tokens."""
        of_groups, of_neurons = (
            tuple(layer.cpu().double().numpy() / max(1, over) for layer in layers) for layers in (groups, neurons)
        )
        return cls(criterion, of_groups, of_neurons, are_losses)


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
        _losses(scores.groups, scores.are_losses),
        _losses(scores.neurons, scores.are_losses),
    )


def _losses(scores: Sequence[NDArray[np.float64]], are_losses: bool) -> Losses:
    """Scores as losses; where they are no losses, as shares of their sum."""
    lowest = min((float(values.min()) for values in scores if len(values)), default=0.0)
    shifted = [values - min(0.0, lowest) for values in scores]
    total = 1.0 if are_losses else float(sum(values.sum() for values in shifted)) or 1.0
    return tuple(values / total for values in shifted)


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
