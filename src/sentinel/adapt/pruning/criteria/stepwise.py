"""The removal order that knows of compensation: probe, drop the least important, re-solve the rest, and again."""

from __future__ import annotations

import heapq
import math

import numpy as np
import torch
from torch import Tensor

from sentinel.adapt.pruning.compensate import compensate
from sentinel.adapt.pruning.criterion import Criterion
from sentinel.adapt.pruning.gradients import Place, probe
from sentinel.adapt.pruning.joint_removal import JointRemoval
from sentinel.adapt.pruning.plan import Losses, Ranks, RemovalOrder
from sentinel.adapt.pruning.residual_stream import Half
from sentinel.adapt.pruning.subject import Subject
from sentinel.models.decoder import Decoder
from sentinel.models.spec import LayerSpec, ModelSpec
from sentinel.models.width import Kept
from sentinel.progress import track

STEP = 0.1  # of all units, between two probes
PROBE_WINDOWS = 12
AT_ONCE = 0.02  # of a layer's units, at least one: what goes before the rest of the layer is scored again


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

    Each step probes the model as pruned and compensated so far, removes up to `STEP` of all head groups and as large a
    share of the way for neurons (`JointRemoval`, which knows what else has gone of a layer), and re-solves the attention
    projections. What is never reached is ordered by the last scores.
    """
    spec = dense.spec
    groups = [list(range(layer.n_kv_head)) for layer in spec.layers]
    kept = [list(range(layer.intermediate_size)) for layer in spec.layers]
    ranks = _Ranks(spec)
    steps = max(1, int(np.ceil(max(heads, neurons) / STEP - 1e-9)))
    student = dense
    units = _Units({}, "attn", groups), _Units({}, "mlp", kept)
    for step in track(range(steps), "Planning", steps):
        part = windows.roll(-step * PROBE_WINDOWS, 0)[:PROBE_WINDOWS]
        removals = probed(student, part, seed=seed + step, with_neurons=neurons > 0)
        units = _Units(removals, "attn", groups), _Units(removals, "mlp", kept)
        share = (step + 1) / steps
        ranks.drop("groups", units[0], share * heads, floor_groups)
        if neurons > 0:
            ranks.drop("neurons", units[1], share * neurons, floor_neurons)
        if step + 1 < steps:
            (student,) = compensate(dense, [Kept(groups, kept)], windows[: 2 * PROBE_WINDOWS], halves=("attn",))
    ranks.finish("groups", units[0])
    ranks.finish("neurons", units[1])
    return RemovalOrder(
        spec, Stepwise.name, ranks.of["groups"], ranks.of["neurons"], ranks.losses["groups"], ranks.losses["neurons"]
    )


def probed(student: Decoder, windows: Tensor, *, seed: int, with_neurons: bool) -> dict[Place, JointRemoval]:
    """What can be removed of every half layer of the ``student``, by one probe."""
    read: dict[Place, list[list[Tensor]]] = {}
    for found in probe(student, windows, seed=seed):
        for place, layer in found.items():
            if place[1] == "attn" or with_neurons:
                both = read.setdefault(place, [[], []])
                both[0].append(layer.inputs)
                both[1].append(layer.gradients)
    removals = {}
    for place in list(read):
        inputs, gradients = read.pop(place)
        spec: LayerSpec = student.spec.layers[place[0]]
        unit = spec.group_size * spec.head_dim if place[1] == "attn" else 1
        removals[place] = JointRemoval(torch.cat(inputs), torch.cat(gradients), unit)
    return removals


def head_scores(student: Decoder, windows: Tensor, groups: list[list[int]], *, seed: int) -> list[dict[int, float]]:
    """What each head group of ``student`` costs beside all others, by layer and by its number in ``groups``."""
    removals = probed(student, windows, seed=seed, with_neurons=False)
    return [
        dict(zip(numbers, removals[index, "attn"].scores().tolist(), strict=True))
        if (index, "attn") in removals
        else {}
        for index, numbers in enumerate(groups)
    ]


class _Units:
    """The units of all layers that are left, ``left`` [layer] by the dense model's numbers, cheapest first.

    A layer is scored anew when as many of its units have gone as `AT_ONCE` says; those that go in between are removed
    together.
    """

    def __init__(self, removals: dict[Place, JointRemoval], half: Half, left: list[list[int]]) -> None:
        self.left = left
        self._removals = {index: removals[index, half] for index in range(len(left)) if (index, half) in removals}
        self._numbers = [list(units) for units in left]  # of the units as the probe found them
        self._at_once = [max(1, int(len(units) * AT_ONCE)) for units in left]
        self._gone: list[list[int]] = [[] for _ in left]
        self._cheapest: list[tuple[float, int, int]] = []
        for index in self._removals:
            self._score(index)

    def scores(self) -> dict[tuple[int, int], float]:
        """Scores of what is left, by layer and number."""
        return {(index, self._numbers[index][place]): value for value, index, place in self._cheapest}

    def take(self, floor: int) -> tuple[float, int, int] | None:
        """Remove the cheapest unit of a layer with more than ``floor``: its cost, layer and number; None without one."""
        while self._cheapest:
            value, index, place = heapq.heappop(self._cheapest)
            if len(self.left[index]) <= floor:
                continue
            number = self._numbers[index][place]
            self.left[index].remove(number)
            self._gone[index].append(place)
            if len(self._gone[index]) == self._at_once[index]:
                self._removals[index].remove(self._gone[index])
                self._gone[index] = []
                self._score(index)
            return value, index, number
        return None

    def _score(self, index: int) -> None:
        scores = self._removals[index].scores().tolist()
        others = [entry for entry in self._cheapest if entry[1] != index]
        self._cheapest = others + [(value, index, place) for place, value in enumerate(scores) if math.isfinite(value)]
        heapq.heapify(self._cheapest)


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

    def drop(self, kind: str, units: _Units, ratio: float, floor: int) -> None:
        """Remove the cheapest units until ``ratio`` of all is gone; every layer keeps ``floor`` of them."""
        for _ in range(round(ratio * sum(len(r) for r in self.of[kind])) - self._next[kind]):
            taken = units.take(floor)
            if taken is None:
                return
            value, index, unit = taken
            self._take(kind, index, unit, value)

    def finish(self, kind: str, units: _Units) -> None:
        """Give the units that are left the last ranks, by score; units without a score keep their order."""
        scores = units.scores()
        left = [(scores.get((i, unit), 0.0), i, unit) for i, layer in enumerate(units.left) for unit in layer]
        left.sort(key=None if scores else lambda item: (-item[2], item[1]))
        for value, index, unit in left:
            self._take(kind, index, unit, value)

    def _take(self, kind: str, index: int, unit: int, loss: float) -> None:
        self.losses[kind][index][unit] = loss
        self.of[kind][index][unit] = self._next[kind]
        self._next[kind] += 1
