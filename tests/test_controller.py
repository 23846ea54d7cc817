"""Budget, regrowth, and the cycles of prune, measure, grow and learn."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, largest_difference, some_tokens

from sentinel.adapt.cycles.adaptation import Adaptation, read_state, write_state
from sentinel.adapt.cycles.below_budget import least_important
from sentinel.adapt.cycles.budget import CostTable, make_budget, share_costs, size_costs
from sentinel.adapt.cycles.controller import Controller, ControllerSettings
from sentinel.adapt.cycles.masked import Head, MaskedModel
from sentinel.adapt.cycles.regrow import WarmUp, choose_regrowth, gate_gradients, warm_up
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.recovery.teacher import Teacher
from sentinel.errors import InputError
from sentinel.models.reference import ReferenceDecoder
from sentinel.models.width import Width

QUICK = ControllerSettings(
    RecoverySettings(steps=3, batch=2, evaluations=1), cycles=3, overshoot=0.2, warm_up=2, patience=9
)


def costs_of(spec):
    times = CostTable(2.0, tuple(tuple(0.5 * g for g in range(la.n_kv_head + 1)) for la in spec.layers))
    return {"heads": share_costs(spec), "MB": size_costs(spec), "ms": times}


def controller_of(spec, budget="0.5", settings=QUICK, **options):
    dense = filled_decoder(spec)
    windows = [some_tokens(spec, batch=n, length=16, seed=s) for n, s in ((12, 3), (6, 4), (3, 5))]
    return Controller(dense, *windows, make_budget(budget, costs_of(dense.spec)), settings, **options)


def ignore(*_):
    """Nothing to do after a cycle."""


def test_costs_are_those_of_the_model():
    spec = unequal_spec()
    counts = [1, 0, 3, 1]
    smaller = Width(tuple(counts), Width.full(spec).neurons).of(spec)
    assert size_costs(spec).of(counts) == pytest.approx(smaller.parameter_count() * 4 / 1e6)
    assert share_costs(spec).of(counts) == pytest.approx(5 / 6)
    assert CostTable(1.0, ((0.0, 2.0, 1.5),)).layers == ((0.0, 2.0, 2.0),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("400kB", "not understood"),
        ("half", "not understood"),
        ("0", "out of range"),
        ("1.5", "out of range"),
        ("0.9x", "out of range"),
        ("900MB", "not below the unpruned model"),
        ("0.01MB", "below the floor"),
        ("0.01", "below the floor"),
        ("20x", "below the floor"),
    ],
)
def test_budgets_out_of_reach_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        make_budget(text, costs_of(spec_of("gpt2")))


def test_floors_count_into_the_budget():
    costs = costs_of(spec_of("gpt2"))
    assert make_budget("0.1", costs).allows([1, 0, 0])
    with pytest.raises(InputError, match="3 heads left"):
        make_budget("0.1", costs, floor=1)


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "unequal-rope"])
def test_the_student_computes_what_the_masked_model_does(name):
    dense = filled_decoder(unequal_spec() if name.startswith("unequal") else spec_of(name))
    model = MaskedModel(dense)
    model.park([Head(0, 1), Head(2, 0)])
    reference = ReferenceDecoder(dense)
    for block, mask in zip(reference.blocks, model.gates(), strict=True):
        block.attn.mask.copy_(mask.repeat_interleave(max(1, block.attn.layer.group_size)))
    tokens = some_tokens(dense.spec)
    with torch.no_grad():
        student = model.student()
        assert largest_difference(student(tokens), reference(tokens)) < 1e-5
        for parameter in student.parameters():
            parameter.mul_(1.01)
        expected = student(tokens)
    model.take_back(student, model.kept)
    with torch.no_grad():
        assert largest_difference(model.student()(tokens), expected) < 1e-6
    model.regrow(model.parked)
    home, first = model.decoder.state_dict(), dense.state_dict()
    group = first["layers.0.attn.qkv_proj.weight"].unflatten(0, (dense.spec.layers[0].n_kv_head, -1))
    kept = home["layers.0.attn.qkv_proj.weight"].unflatten(0, (dense.spec.layers[0].n_kv_head, -1))
    assert torch.equal(kept[1], group[1]) and torch.allclose(kept[0], 1.01 * group[0])


def test_regrowth_picks_the_head_that_matters(copier):
    dense, windows, _ = copier
    model = MaskedModel(dense)
    parked = [Head(0, 0), Head(0, 1), Head(0, 3)]  # head 0 copies, the others are idle
    model.park(parked)
    teacher = Teacher(dense, windows.tokens)
    gradients = gate_gradients(model, teacher, range(len(windows.tokens)))
    assert gradients[0][0] < 0 and gradients[0].argmin() == 0
    budget = make_budget("0.5", costs_of(dense.spec))
    assert choose_regrowth(gradients, model.parked, model.counts, budget) == [Head(0, 0)]


def test_the_gate_gradient_is_the_slope_of_the_loss(copier):
    dense, windows, _ = copier
    model = MaskedModel(dense)
    model.park([Head(0, 0)])
    teacher = Teacher(dense, windows.tokens)
    slope = float(gate_gradients(model, teacher, range(4))[0][0])
    from sentinel.adapt.pruning.gated_model import GatedModel

    gated, gates = GatedModel(model.decoder, teacher), model.gates()
    closed = gated.divergence(gates, range(4))
    gates[0][0] = 1e-3
    assert slope == pytest.approx(float(gated.divergence(gates, range(4)) - closed) / 1e-3, rel=0.05)


def test_a_regrown_gate_opens_in_a_straight_line_and_learns_faster():
    assert [warm_up(done, 4) for done in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert warm_up(0, 0) == 1.0
    dense = filled_decoder(spec_of("llama-grouped"))
    model = MaskedModel(dense)
    model.park([Head(1, 0)])
    student = model.student()
    attention = student.blocks[1].attn
    full = attention.gate.detach().clone()
    update = WarmUp(student, model.kept, [Head(1, 1)], updates=2, boost=3.0)
    rows = attention.qkv_proj.weight.detach().clone(), student.blocks[0].attn.qkv_proj.weight.detach().clone()
    for number, share in ((1, 0.5), (2, 1.0)):
        assert torch.equal(attention.gate, full * warm_up(number - 1, 2))
        with torch.no_grad():
            for block in student.blocks:
                block.attn.qkv_proj.weight.add_(0.1)
        update.after_update(number)
        assert torch.allclose(attention.gate, full * share)
        assert torch.allclose(attention.qkv_proj.weight, rows[0] + 0.3 * number, atol=1e-6)
        assert torch.allclose(student.blocks[0].attn.qkv_proj.weight, rows[1] + 0.1 * number, atol=1e-6)
    with torch.no_grad():
        attention.gate.fill_(0.9)
    update.after_update(3)
    assert torch.equal(attention.gate, torch.full_like(full, 0.9))  # the optimiser's by now


def test_the_least_important_go_but_for_the_floor():
    scores = [{0: 1.0, 2: 5.0}, {1: 2.0}, {}]
    assert least_important(scores, 2, 0) == [Head(0, 0), Head(1, 1)]
    assert least_important(scores, 9, 1) == [Head(0, 0)]
    assert len(least_important(scores, 9, 0)) == 2


@pytest.mark.parametrize(("budget", "heads"), [("0.5", 9), ("1.2x", 14), ("0.25", 4)])
def test_the_budget_is_kept_exactly_in_every_cycle(budget, heads):
    spec = spec_of("llama-multi-head-tied")
    controller = controller_of(spec, budget)
    models = []
    record = controller.run(lambda model, best: models.append((model, best)))
    assert record.stopped == "all cycles done" and len(record.cycles) == 3
    for cycle, (model, _) in zip(record.cycles, models, strict=True):
        assert cycle.heads == heads == model.spec.n_head_total
        assert cycle.cost <= record.limit < cycle.cost + (0.5 if budget.endswith("x") else 1 / 18) + 1e-9
        assert (
            cycle.parameters
            == model.spec.parameter_count()
            == sum(p.numel() for n, p in model.named_parameters() if not n.endswith("gate"))
        )
    assert [best for _, best in models] == [
        cycle.held_out_nll < min((c.held_out_nll for c in record.cycles[:i]), default=math.inf)
        for i, cycle in enumerate(record.cycles)
    ]


def test_heads_are_exchanged_and_every_signal_is_recorded():
    controller = controller_of(spec_of("llama-multi-head-tied"))
    record = controller.run(ignore)
    first, second, third = record.cycles
    assert len(first.pruned) == 9 + 4 and len(first.regrown) == 4
    assert len(second.pruned) == len(second.regrown) == 2
    assert len(third.pruned) == len(third.regrown) == 1
    for before, cycle in ((first, second), (second, third)):
        kept = {Head(i, g) for i, layer in enumerate(before.kept) for g in layer}
        now = {Head(i, g) for i, layer in enumerate(cycle.kept) for g in layer}
        assert now == (kept - set(cycle.pruned)) | set(cycle.regrown)
        scored = {Head(i, g) for i, la in enumerate(cycle.importance) for g, v in enumerate(la) if v is not None}
        assert scored == kept
        seen = {Head(i, g) for i, la in enumerate(cycle.entropy) for g, v in enumerate(la) if v is not None}
        assert seen == kept - set(cycle.pruned)
        assert all(len(layer) == 6 for layer in cycle.gate_gradient)
    assert record.dense_nll is not None and first.updates == 3
    assert set(first.seconds) == {"prune", "measure", "learn"}


def test_an_interrupted_adaptation_goes_on_as_if_it_had_not_been(tmp_path):
    spec = spec_of("llama-grouped")
    whole = controller_of(spec, "0.6")
    models = []
    whole.run(lambda model, _: models.append(model))
    broken = controller_of(spec, "0.6")

    def stop(model, _):
        write_state(tmp_path / "state", broken.record, broken.model.decoder.state_dict())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run(stop)
    resumed = controller_of(spec, "0.6")
    resumed.resume(*read_state(tmp_path / "state"))
    assert len(resumed.record.cycles) == 1
    last = []
    record = resumed.run(lambda model, _: last.append(model))
    without_times = [[dataclasses.replace(c, seconds={}) for c in r.cycles] for r in (record, whole.record)]
    assert without_times[0] == without_times[1]
    assert all(torch.equal(a, b) for a, b in zip(last[-1].parameters(), models[-1].parameters(), strict=True))
    other = controller_of(spec, "0.6", dataclasses.replace(QUICK, boost=1.0))
    with pytest.raises(InputError, match=r"had boost 3\.0, not 1\.0"):
        other.resume(*read_state(tmp_path / "state"))
    with pytest.raises(InputError, match=r"had budget '0\.6', not '0\.5'"):
        controller_of(spec, "0.5").resume(*read_state(tmp_path / "state"))


def test_the_record_goes_through_json():
    record = controller_of(spec_of("gpt2"), settings=dataclasses.replace(QUICK, cycles=1), name="tiny").run(ignore)
    assert Adaptation.from_json(record.to_json()) == record
    assert record.best is record.cycles[0] and record.seconds > 0
    with pytest.raises(InputError, match="version 9"):
        Adaptation.from_json(record.to_json().replace('"schema_version": 1', '"schema_version": 9'))
    for wrong in ("[1]", "{}", "{", '{"schema_version": 1, "cycles": [3]}'):
        with pytest.raises(InputError, match="not the record"):
            Adaptation.from_json(wrong)


def test_it_stops_when_quality_no_longer_rises(monkeypatch):
    from sentinel.adapt.cycles import controller as module

    controller = controller_of(spec_of("gpt2"), settings=dataclasses.replace(QUICK, cycles=9, patience=2))
    real, losses = module.recover, iter((3.0, 2.0, 2.5, 2.0))

    def judged(*arguments, **options):
        found = real(*arguments, **options)
        return dataclasses.replace(found, best=dataclasses.replace(found.best, nll={"all": next(losses)}))

    monkeypatch.setattr(module, "recover", judged)
    record = controller.run(ignore)
    assert len(record.cycles) == 4 and record.best.number == 1
    assert record.stopped == "held-out quality no longer rises"


def test_settings_out_of_range_are_refused():
    for wrong in ({"cycles": 0}, {"overshoot": 1.0}, {"boost": 0.0}, {"patience": 0}):
        with pytest.raises(InputError):
            ControllerSettings(**wrong)
