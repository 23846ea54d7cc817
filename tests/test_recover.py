"""Recovery: what learns, what stays, and that interruptions leave no trace."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from conftest import spec_of
from torch.nn import functional

from sentinel.adapt.distillation import TeacherTargets, divergence, judged, likeliest
from sentinel.adapt.prune import Pruner, Settings, make_elastic
from sentinel.adapt.recover import RecoverySettings, recover
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.elastic import ElasticDecoder
from sentinel.models.sources import random_decoder

SHORT = RecoverySettings(steps=12, train="projections", batch=4, learning_rate=3e-3, evaluations=2, bf16=False)


def teacher_model(name: str = "llama-multi-head-tied") -> Decoder:
    """A decoder whose predictions are far from uniform, and whose activations can be trained."""
    decoder = random_decoder(spec_of(name), 0)
    with torch.no_grad():
        for parameter_name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 if parameter_name.startswith("embed") else 6)
    return decoder


def pruned(dense: Decoder, heads: float = 0.5) -> Decoder:
    pruner = Pruner(dense, Settings(criterion="magnitude", compensate=False), None)
    return pruner.apply([pruner.order(heads, 0.0).plan(heads)])[0]


def elastic_model(dense: Decoder, levels: tuple[float, ...] = (0.3, 0.6)) -> ElasticDecoder:
    pruner = Pruner(dense, Settings(criterion="magnitude", compensate=False), None)
    order = pruner.order(max(levels), 0.0)
    plans = [order.plan(level) for level in levels]
    return make_elastic(dense, order, plans, pruner.apply(plans))


def windows(count: int, length: int = 17, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 97, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_and_its_gradient_are_those_of_the_bucketed_distributions(temperature):
    generator = torch.Generator().manual_seed(0)
    states, other = (torch.randn(9, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    head = torch.randn(31, 12, generator=generator, dtype=torch.float64)
    tokens = (other @ head.T).topk(5, -1).indices
    log_probs = ((other @ head.T) / temperature).log_softmax(-1).gather(-1, tokens)
    states.requires_grad_()

    def buckets(log_p: torch.Tensor) -> torch.Tensor:
        top = log_p.gather(-1, tokens)
        return torch.cat((top, torch.log1p(-top.exp().sum(-1, keepdim=True))), -1)

    q = buckets((states @ head.T / temperature).log_softmax(-1))
    p = buckets(((other @ head.T) / temperature).log_softmax(-1))
    expected = functional.kl_div(q, p, log_target=True, reduction="batchmean") * temperature**2
    (gradient,) = torch.autograd.grad(expected, states)
    targets = TeacherTargets(tokens, log_probs)
    found = divergence(states, head, targets, temperature)
    (found_gradient,) = torch.autograd.grad(found, states)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(found_gradient, gradient, atol=1e-5)
    kl = judged(states, head, targets, temperature)
    assert kl.item() / 9 * temperature**2 == pytest.approx(expected.item(), rel=1e-4)


def test_a_model_diverges_by_nothing_from_itself():
    dense = teacher_model()
    states = dense.final_norm(dense.hidden_states(windows(3))).flatten(0, 1).detach().requires_grad_()
    targets = TeacherTargets(*likeliest(states.detach(), dense.head_weight, 20, 1.0))
    loss = divergence(states, dense.head_weight.detach(), targets, 1.0)
    assert abs(loss.item()) < 1e-5
    assert torch.autograd.grad(loss, states)[0].abs().max() < 1e-5


@pytest.mark.parametrize("train", ["biases", "projections", "all"])
def test_recovery_improves_held_out_divergence(train):
    dense = teacher_model()
    student = pruned(dense)
    embedding = student.embed.weight.clone()
    found = recover(
        student,
        dense,
        windows(64),
        windows(8, seed=1),
        dataclasses.replace(SHORT, steps=25, train=train, learning_rate=1e-2),
    )
    assert found.best.mean_kl < 0.95 * found.held_out[0].mean_kl
    assert torch.equal(student.embed.weight, embedding)
    assert found.tokens == 25 * 4 * 16 and len(found.losses) == 25


def test_resumed_run_equals_uninterrupted(tmp_path):
    settings = dataclasses.replace(SHORT, checkpoint_minutes=0.0, accumulate=2)
    dense = teacher_model()
    whole, resumed = pruned(dense), pruned(dense)
    expected = recover(whole, dense, windows(24), windows(8, seed=1), settings)

    def stop(step):
        if step.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(resumed, dense, windows(24), windows(8, seed=1), settings, folder=tmp_path / "run", after_step=stop)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines + '{"step": 8, "loss"')
    resumed = pruned(dense)  # a new process knows nothing of the weights so far
    found = recover(resumed, dense, windows(24), windows(8, seed=1), settings, folder=tmp_path / "run")
    assert found.losses == expected.losses
    assert [h.kl for h in found.held_out] == [h.kl for h in expected.held_out]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 13))


def test_elastic_levels_improve_and_the_dense_level_stays():
    dense = teacher_model()
    elastic = elastic_model(dense)
    tokens = windows(4, seed=2)
    before = elastic(tokens)
    found = recover(
        elastic, dense, windows(64), windows(8, seed=1), dataclasses.replace(SHORT, steps=40, learning_rate=3e-3)
    )
    assert torch.equal(elastic(tokens), before)
    first = found.held_out[0]
    assert list(first.kl) == ["heads 0.3", "heads 0.6"]
    assert all(found.best.kl[label] < 0.97 * first.kl[label] for label in first.kl)
