"""Units of a projection that go together, against the regression that is solved for them at once."""

from __future__ import annotations

import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder, some_tokens
from torch import Tensor

from sentinel.adapt.pruning.criteria.stepwise import stepwise_order
from sentinel.adapt.pruning.joint_removal import RIDGE, JointRemoval


def problem(n_token: int = 200, inputs: int = 12) -> tuple[Tensor, Tensor]:
    """Inputs [N, K] that hold one another in part, and gradients there of weights [K, 3] and gradients [N, 3] behind."""
    stream = torch.Generator().manual_seed(0)
    mixed = torch.randn(n_token, inputs, generator=stream) @ torch.randn(inputs, inputs, generator=stream)
    weights = torch.randn(inputs, 3, generator=stream)
    return mixed + 0.5, torch.randn(n_token, 3, generator=stream) @ weights.T


def cost(z: Tensor, gradients: Tensor, gone: list[int]) -> Tensor:
    """Per token [N], the change of the loss at first order when what the rest predicts stands for the ``gone`` columns."""
    rest = [k for k in range(z.shape[1]) if k not in gone]
    known = torch.cat((z[:, rest], torch.ones(len(z), 1)), 1).double()
    scale = float(torch.cat((z, torch.ones(len(z), 1)), 1).double().square().sum(0)[:-1].mean())
    normal = known.T @ known + RIDGE * scale * torch.eye(known.shape[1], dtype=torch.float64)
    left = z[:, gone].double() - known @ torch.linalg.solve(normal, known.T @ z[:, gone].double())
    return (left * gradients[:, gone]).sum(1)


@pytest.mark.parametrize("unit", [1, 3])
def test_what_a_unit_costs_beside_those_that_are_gone(unit):
    """The change of the loss by both together is that by the first and, of what is re-solved, that by the second."""
    z, gradients = problem()
    removal = JointRemoval(z, gradients, unit)

    def columns(*units: int) -> list[int]:
        return [u * unit + k for u in units for k in range(unit)]

    alone = removal.scores()
    for index in range(len(alone)):
        assert float(alone[index]) == pytest.approx(float(cost(z, gradients, columns(index)).square().sum()), rel=1e-3)
    removal.remove([2])
    after = removal.scores()
    assert after[2] == torch.inf
    for index in (0, 1, 3):
        more = cost(z, gradients, columns(2, index)) - cost(z, gradients, columns(2))
        assert float(after[index]) == pytest.approx(float(more.square().sum()), rel=1e-3)
    both = JointRemoval(z, gradients, unit)
    both.remove([2, 0])
    removal.remove([0])
    torch.testing.assert_close(both.scores(), removal.scores(), rtol=1e-3, atol=0)


def test_twins_are_not_both_free():
    """Either of two equal units can go for nothing; then the other one is all there is."""
    z, gradients = problem(inputs=4)
    removal = JointRemoval(torch.cat((z, z[:, :1]), 1), torch.cat((gradients, gradients[:, :1]), 1), 1, ridge=1e-7)
    free = removal.scores()
    assert float(max(free[0], free[4])) < 1e-3 * float(free[1])
    removal.remove([4])
    assert float(removal.scores()[0]) > 1e3 * float(free[0])


def test_a_head_with_a_closed_gate_is_worth_nothing():
    gradients = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    removal = JointRemoval(torch.zeros(30, 8), gradients, 4)
    assert torch.equal(removal.scores(), torch.zeros(2, dtype=torch.float64))
    removal.remove([0])
    assert removal.scores().tolist() == [torch.inf, 0.0]


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_an_order_ranks_every_unit_once(name):
    dense = filled_decoder(spec_of(name))
    order = stepwise_order(dense, some_tokens(dense.spec, batch=6), heads=0.5, neurons=0.3, floor_groups=1)
    for ranks, count in ((order.group_ranks, "n_kv_head"), (order.neuron_ranks, "intermediate_size")):
        units = sum(getattr(layer, count) for layer in dense.spec.layers)
        assert sorted(int(rank) for layer in ranks for rank in layer) == list(range(units))
    assert all(
        count >= min(1, layer.n_kv_head)
        for count, layer in zip(order.plan(0.5).width.groups, dense.spec.layers, strict=True)
    )
