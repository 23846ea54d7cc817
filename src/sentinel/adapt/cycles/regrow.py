"""Which parked heads come back, and how gently."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sentinel.adapt.cycles.budget import Budget
from sentinel.adapt.cycles.masked import Head, MaskedModel
from sentinel.adapt.pruning.gated_model import GatedModel
from sentinel.adapt.recovery.teacher import Teacher
from sentinel.models.decoder import Decoder
from sentinel.models.tensors import by_unit, pruned_tensors
from sentinel.progress import track

BATCH = 2


def gate_gradients(model: MaskedModel, teacher: Teacher, windows: Sequence[int]) -> list[Tensor]:
    """Gradient [n_kv_head] per layer of the divergence from ``teacher`` by each head's gate, parked ones closed.

    Where it is negative, opening the gate lowers the loss, by that much to first order (growing by the gradient of what
    is absent: RigL, Evci et al. 2020). ``windows`` are numbers of the teacher's.
    """
    gated = GatedModel(model.decoder, teacher)
    gates = [gate.requires_grad_() for gate in model.gates()]
    found = [torch.zeros_like(gate) for gate in gates]
    batches = [list(windows[start : start + BATCH]) for start in range(0, len(windows), BATCH)]
    for batch in track(batches, "Probing parked heads", len(batches)):
        loss = gated.divergence(gates, batch) * len(batch) / len(windows)
        for total, part in zip(found, torch.autograd.grad(loss, gates, allow_unused=True), strict=True):
            if part is not None:
                total += part
    return found


def choose_regrowth(
    gradients: Sequence[Tensor], parked: Sequence[Head], counts: Sequence[int], budget: Budget
) -> list[Head]:
    """The parked heads whose gates lower the loss most, until no other fits into ``budget`` beside ``counts``."""
    counts = list(counts)
    chosen: list[Head] = []
    for head in sorted(parked, key=lambda head: (float(gradients[head.layer][head.group]), head)):
        counts[head.layer] += 1
        if budget.allows(counts):
            chosen.append(head)
        else:
            counts[head.layer] -= 1
    return chosen


def warm_up(done: int, updates: int) -> float:
    """Gate of a regrown head after ``done`` updates: 0 at first, 1 after ``updates``, a straight line between."""
    return 1.0 if done >= updates else done / updates


class WarmUp:
    """Brings regrown heads into a ``student`` in training: gates that open over ``updates``, and a ``boost``.

    Called after every update of the optimiser. It makes the update of the regrown heads' own weights ``boost`` times as
    large, which is a higher learning rate with any optimiser. ``kept`` are the student's groups of each layer. A head
    whose gate was still closed in the parameters that did best stays closed, and goes first in the next cycle.
    """

    def __init__(
        self, student: Decoder, kept: Sequence[Sequence[int]], regrown: Sequence[Head], updates: int, boost: float
    ) -> None:
        self._updates, self._boost = updates, boost
        self._gates: list[tuple[Tensor, Tensor]] = []  # a view of a head's gates, and their full value
        self._weights: list[Tensor] = []  # views of its rows and columns
        state = {name: tensor.data for name, tensor in student.named_parameters()}
        for tensor in pruned_tensors(student.spec):
            for head in regrown:
                if tensor.unit == "groups" and tensor.layer == head.layer:
                    place = kept[head.layer].index(head.group)
                    view = by_unit(state[tensor.name], tensor).select(tensor.axis, place)
                    if tensor.name.endswith(".gate"):
                        self._gates.append((view, view.clone()))
                    else:
                        self._weights.append(view)
        self._before: list[Tensor] = []
        self._prepare(0)

    def after_update(self, number: int) -> None:
        """Enlarge update ``number`` (1 is the first), and set the gates for the next one."""
        for weight, old in zip(self._weights, self._before, strict=True):
            weight.copy_(old + self._boost * (weight - old))
        self._prepare(number)

    def _prepare(self, done: int) -> None:
        if done <= self._updates:  # later the gates are the optimiser's
            for gate, full in self._gates:
                gate.copy_(full * warm_up(done, self._updates))
        self._before = [weight.clone() for weight in self._weights]
