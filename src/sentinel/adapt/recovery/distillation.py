"""The distillation loss: Kullback-Leibler divergence from the teacher's likeliest tokens, without keeping logits.

The teacher's distribution is kept as its K likeliest tokens and one bucket for the mass of all others, so that a teacher
is asked once per text however often the text is trained on. The gradient at the student's final states follows in
closed form from a few rows of logits at a time: N x V of them are never held, nor walked through by autograd.

Shape letters: N positions, C width, V vocabulary, K kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sentinel.models.parts.head import Head

ROWS = 128  # positions at once: their logits stay close to the processor
LEAST_REST = 1e-6  # mass below which the bucket of all other tokens counts as empty


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's predictions at N positions: tokens [N, K], their log-probabilities [N, K] at the temperature,
    and, where the hidden-state loss wants them, normalised final states [N, C]."""

    tokens: Tensor
    log_probs: Tensor
    states: Tensor | None = None

    def to(self, device: torch.device) -> TeacherTargets:
        states = None if self.states is None else self.states.to(device)
        return TeacherTargets(self.tokens.to(device), self.log_probs.to(device), states)


def likeliest(states: Tensor, head: Head, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest tokens [N, K] int32 after normalised final ``states`` [N, C], and their log-probabilities
    [N, K] float16 under softmax(logits / temperature)."""
    head = _in_working_precision(head)
    tokens, log_probs = [], []
    for rows in states.split(ROWS):
        logits = head.logits(rows) / temperature
        top = logits.topk(count, dim=-1)
        log_probs.append(top.values - logits.logsumexp(-1, keepdim=True))
        tokens.append(top.indices.int())
    return torch.cat(tokens), torch.cat(log_probs).half()


def _in_working_precision(head: Head) -> Head:
    """``head`` in the precision that autocast asks for, converted once and not for every block of rows."""
    kind = head.weight.device.type
    return head.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else head


class _Divergence(torch.autograd.Function):
    """Mean over positions of T^2 KL(teacher || student) over K + 1 outcomes (Hinton et al. 2015)."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Head, tokens: Tensor, log_probs: Tensor, temperature: float, wanted: bool
    ) -> Tensor:
        head = _in_working_precision(head)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if wanted else None
        for start in range(0, len(states), ROWS):
            rows = slice(start, start + ROWS)
            logits = head.logits(states[rows])
            slope = head.slope(logits) if wanted else None
            loss, at_logits = _rows(logits.div_(temperature), tokens[rows].long(), log_probs[rows].float(), wanted)
            total += loss
            if gradient is not None and at_logits is not None:
                gradient[rows] = head.gradient(at_logits, slope)
        scale = temperature / len(states)
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(scale))
        return total * (temperature * scale)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None, None, None


def _rows(logits: Tensor, tokens: Tensor, log_probs: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Summed divergence of ``logits`` [N, V] (overwritten), and its gradient there where that is ``wanted``.

    With p, q the teacher's and student's probabilities and p0, q0 those of the bucket of all other tokens, the
    gradient is q_j - p_j for a kept token and q_j (1 - p0 / q0) for any other.
    """
    normaliser = logits.logsumexp(-1, keepdim=True)
    student = logits.gather(-1, tokens) - normaliser
    p, q = log_probs.exp(), student.exp()
    p0 = (1 - p.sum(-1, keepdim=True)).clamp(min=LEAST_REST)
    q0 = (1 - q.sum(-1, keepdim=True)).clamp(min=LEAST_REST)
    loss = (p * (log_probs - student)).sum() + (p0 * (p0 / q0).log()).sum()
    if not wanted:
        return loss, None
    gradient = logits.sub_(normaliser).exp_().mul_(1 - p0 / q0)
    return loss, gradient.scatter_(-1, tokens, q - p)


def divergence(states: Tensor, head: Head, targets: TeacherTargets, temperature: float) -> Tensor:
    """T^2 KL in nats a position, between the teacher's targets and the student whose normalised final states are
    ``states`` [N, C]. ``head`` gets no gradient; NaN states give NaN."""
    wanted = torch.is_grad_enabled() and states.requires_grad
    return _Divergence.apply(states, head, targets.tokens, targets.log_probs, temperature, wanted)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def judged(states: Tensor, head: Head, targets: TeacherTargets, temperature: float) -> Tensor:
    """Sum over positions of KL(teacher || student) in nats, at the temperature of the targets."""
    head = _in_working_precision(head)
    total = torch.zeros((), device=states.device)
    for start in range(0, len(states), ROWS):
        rows = slice(start, start + ROWS)
        logits = head.logits(states[rows]).div_(temperature)
        total = total + _rows(logits, targets.tokens[rows].long(), targets.log_probs[rows].float(), False)[0]
    return total


@torch.no_grad()
def negative_log_likelihood(states: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Sum over positions of -log p(label) for ``labels`` [N]."""
    head = _in_working_precision(head)
    total = torch.zeros((), device=states.device)
    for rows, wanted in zip(states.split(ROWS), labels.split(ROWS), strict=True):
        total = total + functional.cross_entropy(head.logits(rows), wanted, reduction="sum")
    return total


def state_distance(states: Tensor, targets: TeacherTargets) -> Tensor:
    """Squared distance of normalised final ``states`` [N, C] from the teacher's, over the teacher's squared length."""
    assert targets.states is not None
    expected = targets.states.float()
    return (states.float() - expected).square().sum() / expected.square().sum()
