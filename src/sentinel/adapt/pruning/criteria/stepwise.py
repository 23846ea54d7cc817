"""The removal order that knows of compensation: probe, drop the least important, re-solve the rest, and again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sentinel.adapt.pruning.compensate import compensate
from sentinel.adapt.pruning.criterion import Criterion
from sentinel.adapt.pruning.gradients import Place, compensated_fisher, probe
from sentinel.adapt.pruning.plan import Losses, Ranks, RemovalOrder
from sentinel.adapt.pruning.residual_stream import Half
from sentinel.adapt.pruning.subject import Subject
from sentinel.models.decoder import Decoder
from sentinel.models.spec import LayerSpec, ModelSpec
from sentinel.models.width import Kept
from sentinel.progress import track

STEP = 0.1  # of all units, between two probes
PROBE_WINDOWS = 12


class Stepwise(Criterion):
    """Units are scored again after every step, all layers together."""

    name = "stepwise"
    scopes = ("global",)

    def order(self, subject: Subject, heads: float, neurons: float) -> RemovalOrder:
        return stepwise_order(
            subject.dense,
            subject.windows,
            heads=heads,
            neurons=neurons,
            floor_groups=subject.floor_groups,
            floor_neurons=subject.floor_neurons,
            seed=subject.seed,
        )


def stepwise_order(
    dense: Decoder,
    windows: Tensor,
    *,
    heads: float,
    neurons: float = 0.0,
    floor_groups: int = 0,
    floor_neurons: int = 0,
    seed: int = 0,
) -> RemovalOrder:
    """A removal order down to ratios ``heads`` and ``neurons``, from calibration ``windows`` [windows, T].

    Each step probes the model as pruned and compensated so far (`compensated_fisher`), removes up to a tenth of all
    head groups and as large a share of the way for neurons, and re-solves the attention projections. What is
    never reached is ordered by the last scores.
    """
    spec = dense.spec
    groups = [list(range(layer.n_kv_head)) for layer in spec.layers]
    kept = [list(range(layer.intermediate_size)) for layer in spec.layers]
    ranks = _Ranks(spec)
    steps = max(1, int(np.ceil(max(heads, neurons) / STEP - 1e-9)))
    student = dense
    group_scores: list[dict[int, float]] = []
    neuron_scores: list[dict[int, float]] = []
    for step in track(range(steps), "Planning", steps):
        part = windows.roll(-step * PROBE_WINDOWS, 0)[:PROBE_WINDOWS]
        group_scores, neuron_scores = score(student, part, groups, kept, seed=seed + step, with_neurons=neurons > 0)
        share = (step + 1) / steps
        ranks.drop("groups", group_scores, groups, share * heads, floor_groups)
        if neurons > 0:
            ranks.drop("neurons", neuron_scores, kept, share * neurons, floor_neurons)
        if step + 1 < steps:
            (student,) = compensate(dense, [Kept(groups, kept)], windows[: 2 * PROBE_WINDOWS], halves=("attn",))
    ranks.finish("groups", group_scores, groups)
    ranks.finish("neurons", neuron_scores, kept)
    return RemovalOrder(
        spec, Stepwise.name, ranks.of["groups"], ranks.of["neurons"], ranks.losses["groups"], ranks.losses["neurons"]
    )


def score(
    student: Decoder, windows: Tensor, groups: list[list[int]], kept: list[list[int]], *, seed: int, with_neurons: bool
) -> tuple[list[dict[int, float]], list[dict[int, float]]]:
    """Importance of what the ``student`` still has, per layer, by the dense model's unit numbers."""
    read: dict[Place, list[list[Tensor]]] = {}
    for found in probe(student, windows, seed=seed):
        for place, layer in found.items():
            if place[1] == "attn" or with_neurons:
                both = read.setdefault(place, [[], []])
                both[0].append(layer.inputs)
                both[1].append(layer.gradients)
    scores: dict[Place, Tensor] = {}
    for place, (inputs, gradients) in read.items():
        spec: LayerSpec = student.spec.layers[place[0]]
        unit = spec.group_size * spec.head_dim if place[1] == "attn" else 1
        scores[place] = compensated_fisher(torch.cat(inputs), torch.cat(gradients), unit)
    return _by_unit(scores, "attn", groups), _by_unit(scores, "mlp", kept)


def _by_unit(scores: dict[Place, Tensor], half: Half, units: list[list[int]]) -> list[dict[int, float]]:
    return [
        dict(zip(units[index], scores[index, half].tolist(), strict=True)) if (index, half) in scores else {}
        for index in range(len(units))
    ]


class _Ranks:
    """Ranks of removal, filled from the first unit that goes to the last."""

    def __init__(self, spec: ModelSpec) -> None:
        self.of: dict[str, Ranks] = {
            "groups": tuple(np.full(layer.n_kv_head, -1) for layer in spec.layers),
            "neurons": tuple(np.full(layer.intermediate_size, -1) for layer in spec.layers),
        }
        self.losses: dict[str, Losses] = {
            kind: tuple(np.zeros(len(units)) for units in layers) for kind, layers in self.of.items()
        }
        self._next = {"groups": 0, "neurons": 0}

    def drop(self, kind: str, scores: list[dict[int, float]], units: list[list[int]], ratio: float, floor: int) -> None:
        """Remove the least important units until ``ratio`` of all is gone; every layer keeps ``floor`` of them."""
        total = sum(len(r) for r in self.of[kind])
        wanted = round(ratio * total) - self._next[kind]
        ordered = sorted((value, index, unit) for index, layer in enumerate(scores) for unit, value in layer.items())
        for value, index, unit in ordered:
            if wanted <= 0:
                return
            if len(units[index]) > floor:
                units[index].remove(unit)
                self._take(kind, index, unit, value)
                wanted -= 1

    def finish(self, kind: str, scores: list[dict[int, float]], units: list[list[int]]) -> None:
        """Give the units that are left the last ranks, by score; units without a score keep their order."""
        left = [(scores[i].get(unit, 0.0), i, unit) for i, layer in enumerate(units) for unit in layer]
        if not any(scores):
            left.sort(key=lambda item: (-item[2], item[1]))
        else:
            left.sort()
        for value, index, unit in left:
            self._take(kind, index, unit, value)

    def _take(self, kind: str, index: int, unit: int, loss: float) -> None:
        self.losses[kind][index][unit] = loss
        self.of[kind][index][unit] = self._next[kind]
        self._next[kind] += 1
