"""Pruning down to a cost."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import spec_of
from helpers import filled_decoder, some_tokens

from sentinel.adapt.pruning.fit_to import MOST_HEADS, MOST_NEURONS, fit_to, megabytes, plan_within
from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.pruning.scores import Scores, removal_order
from sentinel.adapt.text.corpora import Windows
from sentinel.errors import InputError


def pruner_of(criterion: str, *, compensate: bool = False, name: str = "llama-grouped") -> Pruner:
    dense = filled_decoder(spec_of(name))
    windows = Windows(some_tokens(dense.spec, batch=6, length=24), ("a",))
    return Pruner(dense, PruningSettings(criterion, compensate=compensate), windows)


def test_a_target_takes_the_least_loss_that_fits():
    spec = spec_of("gpt2")
    groups = tuple(np.full(4, 1.0) for _ in range(3))
    neurons = tuple(np.full(192, 0.001) for _ in range(3))
    order = removal_order(spec, Scores("fisher", groups, neurons, are_losses=True))
    # heads cost 1 each, a tenth of all neurons 0.06: neurons go first
    plan = plan_within(
        order, lambda p: sum(p.width.groups) * 48 + sum(p.width.neurons), 0.7 * (12 * 48 + 576), 0.7, 0.5
    )
    assert (plan.heads, plan.neurons) == (
        0.15,
        0.45,
    )  # 2 heads, 259 neurons: just enough
    with pytest.raises(InputError, match="out of reach"):
        plan_within(order, lambda p: float(sum(p.width.groups)), 0.5, 0.7, 0.5)


@pytest.mark.parametrize("compensate", [False, True])
def test_megabytes_are_those_of_the_model_that_is_made(compensate):
    pruner = pruner_of("magnitude", compensate=compensate)
    cost = megabytes(pruner)
    whole = cost(pruner.order(0.0, 0.0).plan(0.0))
    _, plan = fit_to(pruner, cost, 0.9 * whole)
    (made,) = pruner.apply([plan])
    assert cost(plan) == pytest.approx(made.spec.parameter_count() * 4 / 1e6) and cost(plan) <= 0.9 * whole


def test_only_what_the_criterion_ranks_goes():
    tried = []

    def cost(plan):
        tried.append((plan.heads, plan.neurons))
        return 1.0 - plan.heads - plan.neurons

    order, plan = fit_to(pruner_of("entropy"), cost, 0.5)
    assert order.criterion == "entropy" and plan.heads >= 0.5 and {neurons for _, neurons in tried} == {0.0}
    assert max(heads for heads, _ in tried) == MOST_HEADS
    tried.clear()
    fit_to(pruner_of("random"), cost, 0.5)
    assert max(tried) == (MOST_HEADS, MOST_NEURONS)


def test_a_target_out_of_reach_is_refused_with_what_can_be_had():
    pruner = pruner_of("random")
    least = megabytes(pruner)(pruner.order(MOST_HEADS, MOST_NEURONS).plan(MOST_HEADS, MOST_NEURONS))
    with pytest.raises(InputError, match=rf"70% of heads and 50% of neurons removed give {least:.4g} where 0\.01 is"):
        fit_to(pruner, megabytes(pruner), 0.01)
