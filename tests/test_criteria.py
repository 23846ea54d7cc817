"""Importance criteria, each through the table of them, and the statistics that they read."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, some_tokens

from sentinel.adapt.pruning import criteria
from sentinel.adapt.pruning.compact import select
from sentinel.adapt.pruning.criteria import criterion_named
from sentinel.adapt.pruning.criteria.learned import Learned
from sentinel.adapt.pruning.criteria.reconstruction import _removal_costs
from sentinel.adapt.pruning.criteria.stepwise import stepwise_order
from sentinel.adapt.pruning.criterion import Criterion, ScoringCriterion
from sentinel.adapt.pruning.plan import RemovalOrder
from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.pruning.scores import Scores, removal_order
from sentinel.adapt.pruning.subject import CalibrationText, Subject
from sentinel.adapt.text.corpora import Windows
from sentinel.errors import InputError
from sentinel.models.families import family_of
from sentinel.models.positions import visible
from sentinel.models.width import Kept


def windows_of(spec, count=12, length=24, seed=3) -> Windows:
    return Windows(some_tokens(spec, batch=count, length=length, seed=seed), ("a",))


def calibrated(dense, windows=None, **options) -> Subject:
    return Subject(dense, CalibrationText(dense, windows or windows_of(dense.spec)), **options)


@pytest.mark.parametrize("name", criteria.NAMES)
def test_the_table_names_criteria_by_their_own_names(name):
    found = criterion_named(name)
    assert isinstance(found, Criterion) and found.name == name and found is criterion_named(name)
    assert PruningSettings(name, compensate=False).needs_text == found.needs_text


def test_unknown_criteria_are_refused_and_all_means_all():
    with pytest.raises(InputError, match=r"'luck' is not known; the criteria are stepwise, learned"):
        criterion_named("luck")
    with pytest.raises(InputError, match="'luck' is not known"):
        PruningSettings("luck")
    assert criteria.asked_for(["all"]) == criteria.NAMES and criteria.asked_for(["random"]) == ("random",)
    assert criteria.asked_for([]) == ()


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "unequal"])
@pytest.mark.parametrize("criterion", criteria.NAMES)
def test_every_criterion_prunes_every_family(name, criterion, monkeypatch):
    monkeypatch.setattr(Learned, "steps", 10)
    dense = filled_decoder(unequal_spec() if name == "unequal" else spec_of(name))
    windows = windows_of(dense.spec)
    pruner = Pruner(dense, PruningSettings(criterion), windows)
    neurons = 0.3 if criterion_named(criterion).scores_neurons else 0.0
    order = pruner.order(0.5, neurons)
    assert order.criterion == criterion
    assert sorted(np.concatenate(order.group_ranks)) == list(range(sum(la.n_kv_head for la in dense.spec.layers)))
    assert sorted(np.concatenate(order.neuron_ranks)) == list(
        range(sum(la.intermediate_size for la in dense.spec.layers))
    )
    (smaller,) = pruner.apply([order.plan(0.5, neurons)])
    with torch.no_grad():
        assert torch.isfinite(smaller(some_tokens(dense.spec))).all()
    again = Pruner(dense, PruningSettings(criterion), windows).order(0.5, neurons)
    assert all(np.array_equal(a, b) for a, b in zip(order.group_ranks, again.group_ranks, strict=True))


@pytest.mark.parametrize("criterion", [name for name in criteria.NAMES if criterion_named(name).needs_text])
def test_criteria_say_that_they_need_text(criterion):
    dense = filled_decoder(spec_of("gpt2"))
    with pytest.raises(InputError, match="calibration text"):
        criterion_named(criterion).order(Subject(dense), 0.5, 0.0)
    with pytest.raises(InputError, match=f"{criterion} .*calibration text"):
        Pruner(dense, PruningSettings(criterion, compensate=False), None)


@pytest.mark.parametrize("criterion", [name for name in criteria.NAMES if not criterion_named(name).scores_neurons])
def test_criteria_of_heads_refuse_neurons(criterion):
    dense = filled_decoder(spec_of("gpt2"))
    with pytest.raises(InputError, match=f"{criterion} scores heads only"):
        Pruner(dense, PruningSettings(criterion), windows_of(dense.spec)).order(0.5, 0.1)


def test_a_criterion_without_a_single_score_and_with_one_scope_says_so():
    dense = filled_decoder(spec_of("gpt2"))
    with pytest.raises(InputError, match="stepwise has no single score"):
        Pruner(dense, PruningSettings("stepwise"), windows_of(dense.spec)).scores(0.5)
    with pytest.raises(InputError, match="stepwise has no scope 'uniform'; take global, or another criterion"):
        PruningSettings("stepwise", scope="uniform")


@pytest.mark.parametrize("criterion", criteria.NAMES)
def test_an_order_follows_from_scores_scope_and_floors(criterion, monkeypatch):
    monkeypatch.setattr(Learned, "steps", 10)
    dense = filled_decoder(spec_of("gpt2"))
    subject = calibrated(dense, floor_groups=1)
    found = criterion_named(criterion)
    order = found.order(subject, 0.75, 0.0)
    assert order.plan(0.75).width.groups == (1, 1, 1)  # of 4 in each layer
    if isinstance(found, ScoringCriterion):
        scores = found.scores(subject, 0.75, 0.0)
        assert scores.criterion == criterion
        same = removal_order(dense.spec, scores, floor_groups=1)
        assert all(np.array_equal(a, b) for a, b in zip(order.group_ranks, same.group_ranks, strict=True))
        uniform = found.order(Subject(dense, subject.text, scope="uniform"), 0.75, 0.0)
        assert all(sorted(ranks // 3) == [0, 1, 2, 3] for ranks in uniform.group_ranks)


LAST_FIRST = """
import numpy as np

from sentinel.adapt.pruning.criterion import ScoringCriterion
from sentinel.adapt.pruning.scores import Scores


class LastFirst(ScoringCriterion):
    name = "last-first"
    needs_text = False

    def scores(self, subject, heads, neurons):
        layers = subject.dense.spec.layers
        groups = tuple(-np.arange(float(layer.n_kv_head)) for layer in layers)
        return Scores(self.name, groups, tuple(-np.arange(float(layer.intermediate_size)) for layer in layers))
"""


def test_a_new_criterion_is_a_file_and_a_line(tmp_path, monkeypatch):
    (tmp_path / "last_first.py").write_text(LAST_FIRST)
    monkeypatch.setattr(criteria, "__path__", [*criteria.__path__, str(tmp_path)])
    monkeypatch.setitem(criteria._PLACES, "last-first", "last_first:LastFirst")
    dense = filled_decoder(spec_of("gpt2"))
    order = Pruner(dense, PruningSettings("last-first", compensate=False), None).order(0.5, 0.5)
    assert order.plan(0.5, 0.5).kept.groups == ((0, 1),) * 3
    sys.modules.pop(f"{criteria.__name__}.last_first")
    criterion_named.cache_clear()


def one_focused_of_two_heads():
    """A layer whose head 0 looks at all positions alike and whose head 1 looks at its own position only."""
    config = {"model_type": "gpt2", "vocab_size": 97, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = filled_decoder(family_of("gpt2").spec_from_config(config))
    attention = model.blocks[0].attn
    with torch.no_grad():
        model.blocks[0].attn_norm.weight.fill_(1.0)
        model.blocks[0].attn_norm.bias.zero_()
        attention.qkv_proj.bias.zero_()
        (query0, key0, _), (query1, key1, _) = attention.qkv_proj.weight.view(2, 3, 16, 32)
        query0.zero_(), key0.zero_()
        query1.copy_(5 * torch.eye(16, 32)), key1.copy_(query1)  # a state is most like itself
    return model


def test_heads_whose_attention_is_spread_out_go_first():
    model = one_focused_of_two_heads()
    windows = Windows(torch.stack([torch.randperm(97)[:24] for _ in range(4)]), ("a",))
    subject = calibrated(model, windows)
    uniform, focused = (subject.statistics.layers[0].entropy / len(windows.tokens)).tolist()
    assert uniform == pytest.approx(1.0, abs=1e-5) and focused < 0.1
    found = criterion_named("entropy")
    assert found.scores(subject, 0.5, 0.0).groups[0][0] < found.scores(subject, 0.5, 0.0).groups[0][1]
    assert found.order(subject, 0.5, 0.0).plan(0.5).kept.groups == ((1,),)


def test_entropy_is_that_of_the_attention_weights():
    dense = filled_decoder(spec_of("llama-grouped"))
    windows = windows_of(dense.spec, count=3, length=9)
    positions = torch.arange(9)[None]
    x, rotary = dense.embedded(windows.tokens, positions), dense.rotary(positions)
    block = dense.blocks[0]
    scores = block.attn.scores(block.attn_input(x), rotary).masked_fill(~visible(9, 9, x.device), -math.inf)
    expected = torch.zeros(2, dtype=torch.float64)
    for window in scores.softmax(-1).double():
        for head, rows in enumerate(window):
            entropies = [-sum(w * math.log(w) for w in row[: t + 1].tolist()) for t, row in enumerate(rows)]
            relative = [entropy / math.log(t + 1) for t, entropy in enumerate(entropies) if t]
            expected[head // 3] += sum(relative) / len(relative) / 3
    found = calibrated(dense, windows).statistics.layers[0].entropy
    assert torch.allclose(found.double(), expected, rtol=1e-4)


def test_random_scores_follow_the_seed():
    dense = filled_decoder(spec_of("gpt2"))
    first, again, other = (criterion_named("random").order(Subject(dense, seed=s), 0.5, 0.5) for s in (1, 1, 2))
    assert np.array_equal(first.group_ranks, again.group_ranks)
    assert not np.array_equal(first.group_ranks, other.group_ranks)
    assert not np.array_equal(first.neuron_ranks, other.neuron_ranks)


def test_magnitude_is_the_norm_of_a_units_rows_and_columns():
    dense = filled_decoder(spec_of("llama-grouped"))
    scores = criterion_named("magnitude").scores(Subject(dense), 0.5, 0.5)
    block = dense.blocks[1]
    rows, columns = block.attn.qkv_proj.weight.view(2, 40, 48), block.attn.out_proj.weight.view(48, 2, 24)
    parts = (rows[1].square().sum() + columns[:, 1].square().sum()).sqrt()
    assert scores.groups[1][1] == pytest.approx(parts.item(), rel=1e-5)
    gate, up, down = (getattr(block.mlp, name).weight for name in ("gate_proj", "up_proj", "down_proj"))
    neuron = (gate[7].square().sum() + up[7].square().sum() + down[:, 7].square().sum()).sqrt()
    assert scores.neurons[1][7] == pytest.approx(neuron.item(), rel=1e-5)


def test_gradient_and_fisher_are_those_of_the_gates():
    dense = filled_decoder(spec_of("gpt2"))
    windows = windows_of(dense.spec, count=3, length=7)
    subject = calibrated(dense, windows)
    gradients = []
    for window in windows.tokens:
        dense.zero_grad()
        loss = torch.nn.functional.cross_entropy(dense(window[None])[0, :-1], window[1:], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, [dense.blocks[1].attn.gate])
        gradients.append(gradient * dense.blocks[1].attn.gate.detach())  # by a factor of the gate, which is 1
    expected = torch.stack(gradients).abs().sum(0) / windows.tokens.numel()
    scores = criterion_named("gradient").scores(subject, 0.5, 0.0)
    assert torch.allclose(torch.tensor(scores.groups[1]).float(), expected.detach(), rtol=1e-3)
    assert scores.are_losses and criterion_named("fisher").scores(subject, 0.5, 0.0).are_losses
    assert not criterion_named("entropy").scores(subject, 0.5, 0.0).are_losses


def test_reconstruction_removes_what_the_others_can_replace():
    """Two heads with the same outputs: one of them goes first, and costs nothing."""
    dense = filled_decoder(spec_of("gpt2"))
    twins = select(dense, Kept([[0, 1, 1, 2]] * 3, [range(192)] * 3))
    scores = Pruner(twins, PruningSettings("reconstruction"), windows_of(twins.spec)).scores(0.5)
    for layer in scores.groups:
        assert int(np.argmin(layer)) in (1, 2)
        assert layer.min() < 1e-3 and layer.max() > 0.99


@pytest.mark.parametrize("unit", [1, 3])
def test_what_a_unit_costs_is_the_least_error_without_it(unit):
    """Against least squares on the inputs themselves, for neurons (one input each) and for heads."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 4 * unit, generator=generator, dtype=torch.float64)
    inputs[:, 1] += 0.9 * inputs[:, 0]  # not all of a cost is the weight's own
    weight = torch.randn(5, 4 * unit, generator=generator, dtype=torch.float64)
    targets = inputs @ weight.T
    expected = []
    for gone in range(4):
        rest = torch.cat((inputs[:, : gone * unit], inputs[:, (gone + 1) * unit :]), 1)
        expected.append((targets - rest @ torch.linalg.lstsq(rest, targets).solution).square().sum())
    found = _removal_costs(weight, torch.linalg.inv(inputs.T @ inputs), unit, 4)
    assert torch.allclose(found, torch.stack(expected))


def test_stepwise_orders_everything_even_if_nothing_is_removed():
    dense = filled_decoder(spec_of("gpt2"))
    order = stepwise_order(dense, windows_of(dense.spec, count=4).tokens, heads=0.0)
    ranks = np.concatenate(order.group_ranks)
    assert sorted(ranks.tolist()) == list(range(len(ranks)))
    losses = np.concatenate(order.group_losses)[np.argsort(ranks)]
    assert (losses > 0).any() and (np.diff(losses) >= 0).all()  # by score, though none was taken


def test_stepwise_removes_one_of_two_alike_and_then_no_longer_the_other():
    """What the twin can replace costs nothing; once it has gone, the other counts as much as any head."""
    config = {"model_type": "gpt2", "vocab_size": 97, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 4}
    twins = select(filled_decoder(family_of("gpt2").spec_from_config(config)), Kept([[0, 1, 1, 2]], [range(128)]))
    order = criterion_named("stepwise").order(calibrated(twins), 0.5, 0.0)
    first, second = np.argsort(order.group_ranks[0])[:2]
    assert first in (1, 2) and order.group_losses[0][first] < 0.05 * order.group_losses[0][second]


@pytest.mark.parametrize("criterion", ["gradient", "fisher", "reconstruction", "stepwise", "learned"])
def test_criteria_find_the_heads_that_copy(copier, criterion):
    model, windows, loss = copier
    assert loss < 1.0  # chance is 3.0
    order = Pruner(model, PruningSettings(criterion, compensate=False), windows).order(0.5, 0.0)
    assert set(np.argsort(order.group_ranks[0])[:2]) == {1, 3}


def test_magnitude_is_fooled_by_large_idle_heads(copier):
    model, _, _ = copier
    order = Pruner(model, PruningSettings("magnitude", compensate=False), None).order(0.5, 0.0)
    assert set(np.argsort(order.group_ranks[0])[2:]) == {1, 3}


def test_losses_of_heads_and_neurons_are_told_in_one_unit_where_they_have_one():
    spec = spec_of("gpt2")
    groups, neurons = tuple(np.full(4, 2.0) for _ in range(3)), tuple(np.full(192, 0.5) for _ in range(3))

    def losses(are_losses: bool) -> RemovalOrder:
        return removal_order(spec, Scores("x", groups, neurons, are_losses))

    assert losses(True).group_losses[0][0] == 2.0 and losses(True).neuron_losses[0][0] == 0.5
    assert losses(False).group_losses[0][0] == pytest.approx(1 / 12)
    assert losses(False).neuron_losses[0][0] == pytest.approx(1 / 576)
    nothing = removal_order(spec, Scores("x", tuple(np.zeros(4) for _ in range(3)), neurons, False))
    assert all((layer == 0.0).all() for layer in nothing.group_losses)  # and not NaN
