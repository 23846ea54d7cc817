"""How much to remove so that a model costs no more than asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sentinel.adapt.pruning.compact import with_output_biases
from sentinel.adapt.pruning.plan import PruningPlan, RemovalOrder
from sentinel.adapt.pruning.prune import Pruner
from sentinel.errors import InputError

MOST_HEADS, MOST_NEURONS = 0.7, 0.5  # how far a target may go: beyond, little is left of a model without training
GRID = 0.05  # between two ratios that are tried

Cost = Callable[[PruningPlan], float]


def fit_to(pruner: Pruner, cost: Cost, limit: float) -> tuple[RemovalOrder, PruningPlan]:
    """The removal order and its plan of least estimated loss whose ``cost`` is at most ``limit``, in one unit.

    Neurons go only where the criterion ranks them. Raises `InputError` when not even `MOST_HEADS` and `MOST_NEURONS`
    suffice.
    """
    neurons = MOST_NEURONS if pruner.settings.ranking.scores_neurons else 0.0
    order = pruner.order(MOST_HEADS, neurons)
    return order, plan_within(order, cost, limit, MOST_HEADS, neurons)


def plan_within(order: RemovalOrder, cost: Cost, limit: float, most_heads: float, most_neurons: float) -> PruningPlan:
    """The plan of least estimated loss whose ``cost`` is at most ``limit``, over a grid of ratios of 5 %.

    This is the idea of ZipLM (Kurtic et al. 2023): removal is paid by measured cost, not by counts. Raises `InputError`
    when even the ``most_heads`` and ``most_neurons`` that the order reaches do not suffice.
    """
    heads, neurons = (
        np.unique(np.append(np.arange(0.0, most, GRID), most)).round(4) for most in (most_heads, most_neurons)
    )
    plans = [order.plan(float(h), float(f)) for h in heads for f in neurons]
    fitting = [plan for plan in plans if cost(plan) <= limit]
    if not fitting:
        raise InputError(
            f"the target is out of reach: {most_heads:.0%} of heads and {most_neurons:.0%} of neurons removed give "
            f"{cost(plans[-1]):.4g} where {limit:.4g} is asked for"
        )
    return min(fitting, key=order.loss)


def megabytes(pruner: Pruner) -> Cost:
    """MB (10^6 bytes) of the fp32 weights that a plan of ``pruner`` leaves, with the biases that compensation adds."""
    spec = pruner.dense.spec
    if pruner.settings.compensate:
        spec = with_output_biases(spec)
    return lambda plan: plan.width.of(spec).parameter_count() * 4 / 1e6
