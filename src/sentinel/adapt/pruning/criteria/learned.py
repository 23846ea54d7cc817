"""Learned gates: L0 training of one gate per head group, weights frozen.

A gate is a hard-concrete variable (Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization"; for
heads: Voita et al. 2019, "Analyzing Multi-Head Self-Attention"):

    s = sigmoid((log u - log(1 - u) + log_alpha) / BETA),  gate = clamp(s (ZETA - GAMMA) + GAMMA, 0, 1),  u uniform

It is open with the probability sigmoid(log_alpha - BETA log(-GAMMA / ZETA)). The loss is the divergence from the model
with all gates open, plus a penalty on the expected share of open gates, which is raised until the asked share is closed
(a Lagrange multiplier, as in Wang et al. 2020, "Structured Pruning of Large Language Models").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sentinel.adapt.pruning.criterion import ScoringCriterion
from sentinel.adapt.pruning.gated_model import GatedModel, short_windows
from sentinel.adapt.pruning.scores import Scores
from sentinel.adapt.pruning.subject import Subject
from sentinel.adapt.recovery.student import bf16_pays
from sentinel.adapt.recovery.teacher import Teacher
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.progress import track

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
START = 2.5  # log-alpha: open with probability 0.98
STEPS, BATCH, LENGTH = 200, 2, 128
LEARNING_RATE = 0.1
RAMP = 0.7  # of the steps, until the asked share should be closed
MULTIPLIER_RATE = 0.5  # by which the penalty, nats for the share of open gates, follows the gap in every step
STIFFNESS = 10.0  # penalty for the gap itself


class Learned(ScoringCriterion):
    """Log-alpha of every head group's gate after training; neurons are not scored (all the same)."""

    name = "learned"
    scores_neurons = False
    steps = STEPS

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        groups = learn_gates(subject.dense, subject.windows, closed=heads, seed=subject.seed, steps=self.steps)
        sizes = (layer.intermediate_size for layer in subject.dense.spec.layers)
        return Scores.of_tensors(self.name, groups, [torch.zeros(size, device="cpu") for size in sizes])


def sample_gates(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Gates in 0..1, drawn for each ``log_alpha``; differentiable in it."""
    u = torch.rand(log_alpha.shape, generator=generator, device=generator.device).clamp(1e-6, 1 - 1e-6)
    u = u.to(log_alpha.device)
    s = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """Probability that a gate is not 0."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def learn_gates(dense: Decoder, windows: Tensor, *, closed: float, seed: int = 0, steps: int = STEPS) -> list[Tensor]:
    """Log-alpha [n_kv_head] per layer after training until the share ``closed`` (0..1) of head groups is closed.

    ``windows`` [W, T] are calibration tokens; a step takes two pieces of 128 of them. Raises `InputError` for NaN.
    """
    counts = [layer.n_kv_head for layer in dense.spec.layers]
    log_alpha = torch.full((sum(counts),), START, device=dense.device, requires_grad=True)
    optimiser = torch.optim.Adam([log_alpha], lr=LEARNING_RATE)
    pieces = short_windows(windows, LENGTH)
    model = GatedModel(dense, Teacher(dense, pieces))
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.empty(0, dtype=torch.long, device="cpu")
    multiplier = 0.0
    for step in track(range(steps), "Learning gates", steps):
        if len(order) < BATCH:
            order = torch.cat((order, torch.randperm(len(pieces), generator=generator, device="cpu")))
        chosen, order = order[:BATCH], order[BATCH:]
        share = open_probability(log_alpha).mean()
        gap = float(share.detach()) - (1 - closed * min(1.0, (step + 1) / (RAMP * steps)))
        gates = sample_gates(log_alpha, generator).split(counts)
        with torch.autocast(dense.device.type, torch.bfloat16, enabled=bf16_pays(dense.device)):
            loss = model.divergence(gates, chosen.tolist())
        loss = loss + max(0.0, multiplier + STIFFNESS * gap) * share
        if not torch.isfinite(loss):
            raise InputError("the model predicts NaN while its gates are learned; check its weights")
        (log_alpha.grad,) = torch.autograd.grad(loss, [log_alpha])
        optimiser.step()
        multiplier = max(0.0, multiplier + MULTIPLIER_RATE * gap)
    return list(log_alpha.detach().split(counts))
