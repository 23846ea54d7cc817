"""Hard-concrete gates: their distribution, and that training closes the heads that do not matter."""

from __future__ import annotations

import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder, some_tokens

from sentinel.adapt.pruning.criteria.learned import learn_gates, open_probability, sample_gates
from sentinel.adapt.pruning.gated_model import GatedModel, open_gates, short_windows
from sentinel.adapt.recovery.distillation import divergence
from sentinel.adapt.recovery.teacher import Teacher
from sentinel.errors import InputError


def test_gates_are_drawn_as_their_probability_says():
    log_alpha = torch.tensor([-2.0, 0.0, 3.0])[:, None].expand(3, 40_000).requires_grad_()
    gates = sample_gates(log_alpha, torch.Generator().manual_seed(0))
    assert gates.min() == 0.0 and gates.max() == 1.0
    shares = (gates > 0).float().mean(1)
    assert torch.allclose(shares, open_probability(log_alpha[:, 0]), atol=0.01)
    assert 0 < ((gates > 0) & (gates < 1)).float().mean() < 1
    (gradient,) = torch.autograd.grad(gates.sum(), log_alpha)
    assert (gradient >= 0).all() and gradient.sum() > 0


def test_gates_from_outside_act_as_the_models_own():
    dense = filled_decoder(spec_of("llama-grouped"))
    windows = some_tokens(dense.spec, batch=3)
    teacher = Teacher(dense, windows)
    model = GatedModel(dense, teacher)
    gates = open_gates(dense)
    assert model.divergence(gates, range(3)).item() == pytest.approx(0.0, abs=1e-3)
    gates[1][0] = 0.0
    with torch.no_grad():
        dense.blocks[1].attn.gate[:3] = 0.0  # group 0 is the first three query heads
        states = dense.final_norm(dense.hidden_states(windows[:, :-1])).flatten(0, 1)
        expected = divergence(states, dense.head, teacher.targets(range(3)), 1.0)
    assert model.divergence(gates, range(3)).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("closed", [0.25, 0.5])
def test_the_asked_share_is_closed_and_what_copies_stays(copier, closed):
    model, windows, _ = copier
    scores = learn_gates(model, windows.tokens, closed=closed, steps=400)[0]
    probability = open_probability(scores)
    assert probability.mean().item() == pytest.approx(1 - closed, abs=0.1)
    assert probability[[0, 2]].min() > 0.8
    assert int(scores.argmin()) in (1, 3)


def test_training_is_the_same_for_the_same_seed_and_leaves_the_model_alone(copier):
    model, windows, _ = copier
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, again, other = (learn_gates(model, windows.tokens, closed=0.5, seed=s, steps=8)[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_broken_model_is_refused():
    dense = filled_decoder(spec_of("gpt2"))
    with torch.no_grad():
        dense.final_norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        learn_gates(dense, some_tokens(dense.spec, batch=4), closed=0.5, steps=2)


def test_windows_are_cut_into_short_ones():
    windows = torch.arange(20).view(2, 10)
    assert torch.equal(short_windows(windows, 4), torch.stack([windows[i, s : s + 4] for i in (0, 1) for s in (0, 4)]))
    assert torch.equal(short_windows(windows, 99), windows)
