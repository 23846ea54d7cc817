"""The controller: cycles of prune, measure, grow and learn, until held-out quality no longer rises.

Each cycle prunes a little below the budget and regrows up to it, so that the heads that are kept are chosen again on the
model as trained so far. The share that is exchanged falls from cycle to cycle (as in RigL, Evci et al. 2020).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sentinel.adapt.adaptation import Adaptation, Cycle, HeadMap
from sentinel.adapt.budget import Budget, CostTable
from sentinel.adapt.calibrate import AttentionEntropy
from sentinel.adapt.compensate import compensate
from sentinel.adapt.distillation import judged
from sentinel.adapt.gates import short_windows
from sentinel.adapt.masked import Head, MaskedModel
from sentinel.adapt.plan import PruningPlan, RemovalOrder, spec_digest
from sentinel.adapt.regrow import WarmUp, choose_regrowth, gate_gradients
from sentinel.adapt.stepwise import score, stepwise_order
from sentinel.adapt.teacher import Teacher
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.progress import say

SIGNAL_LENGTH = 256  # tokens of a window that signals are measured on
PRUNING_WINDOWS = 24  # calibration windows of a cycle's pruning

Learn = Callable[[Decoder, WarmUp, int], float]
"""Trains a student in place with a seed, calling the warm-up around every update; returns the mean training loss."""


@dataclass(frozen=True)
class ControllerSettings:
    """How the controller goes about it.

    At most ``cycles`` cycles of ``updates`` each; ``overshoot`` is the share of all heads that the first one prunes below
    the budget. A regrown head's gate opens over the share ``warm_up`` of a cycle's updates, and its weights learn
    ``boost`` times as fast. It stops after ``patience`` cycles without a better held-out quality.
    """

    cycles: int = 4
    updates: int = 200
    overshoot: float = 0.05
    warm_up: float = 0.25
    boost: float = 3.0
    patience: int = 1
    signal_windows: int = 16
    seed: int = 0

    def exchanged(self, cycle: int, total: int) -> int:
        """Heads that a cycle prunes below the budget: fewer from cycle to cycle, at least one."""
        return max(1, round(self.overshoot * total * (1 - cycle / self.cycles)))


class Controller:
    """Adapts ``dense`` to a budget, from calibration and training ``windows`` [W, T] and ``held_out`` ones [V, T].

    ``learn`` is what trains, ``latencies`` the predicted milliseconds of a decoded token.
    """

    def __init__(
        self,
        dense: Decoder,
        windows: Tensor,
        held_out: Tensor,
        budget: Budget,
        settings: ControllerSettings,
        learn: Learn,
        *,
        latencies: CostTable | None = None,
        name: str = "",
        identity: str = "",
    ) -> None:
        self.dense, self.windows, self.budget, self.settings, self.learn = dense, windows, budget, settings, learn
        self.latencies = latencies
        self.model = MaskedModel(dense)
        self._judge = Judge(dense, held_out)
        self._signals = Teacher(dense, short_windows(windows, SIGNAL_LENGTH)[: settings.signal_windows])
        self.record = Adaptation(
            name,
            budget.text,
            budget.unit,
            budget.limit,
            identity,
            dataclasses.asdict(settings),
            [layer.n_kv_head for layer in dense.spec.layers],
            self._judge(dense)[0],
        )

    def resume(self, record: Adaptation, weights: Mapping[str, Tensor]) -> None:
        """Go on after the cycles of ``record``, whose last one left ``weights``. Raises `InputError` for those of a run
        with other settings, naming the first difference."""
        mine, theirs = (
            {"model": r.model, "budget": r.budget, **r.settings, "model and text": r.identity} for r in (self.record, record)
        )
        for key, value in mine.items():
            if theirs.get(key) != value:
                raise InputError(
                    f"the interrupted run had {key} {theirs.get(key)!r}, not {value!r}; resume it with the same settings"
                )
        self.record = record
        self.model.decoder.load_state_dict(dict(weights))
        if record.cycles:
            self.model.kept = [list(groups) for groups in record.cycles[-1].kept]

    def run(self, after_cycle: Callable[[Decoder, bool], None]) -> Adaptation:
        """Cycle until done. ``after_cycle`` gets the compacted model of every cycle and whether it is the best so far."""
        while self.record.stopped is None:
            student = self.cycle()
            self.record.stopped = self._reason_to_stop()
            after_cycle(student, self.record.best is self.record.cycles[-1])
        return self.record

    def cycle(self) -> Decoder:
        """One cycle; returns the compacted model that it ends with."""
        number, model, settings = len(self.record.cycles), self.model, self.settings
        clock = _Clock()
        with clock("prune"):
            before = model.kept
            importance = self._prune_first() if number == 0 else self._prune_more(number)
            pruned = [Head(i, g) for i, groups in enumerate(before) for g in groups if g not in model.kept[i]]
        with clock("measure"):
            student = model.student()
            pruned_nll, _ = self._judge(student)
            entropy = self._entropies(student)
            gradients = gate_gradients(model, self._signals, range(len(self._signals.windows)))
        regrown = choose_regrowth(gradients, model.parked, model.counts, self.budget)
        model.regrow(regrown)
        with clock("learn"):
            student = model.student()
            steps = round(settings.warm_up * settings.updates)
            warm_up = WarmUp(student, model.kept, regrown, steps, settings.boost)
            loss = self.learn(student, warm_up, settings.seed + number)
            warm_up.finish()
            model.take_back(student, model.kept)
        with clock("measure"):
            nll, kl = self._judge(student)
        self.record.cycles.append(
            Cycle(
                number=number,
                kept=[list(groups) for groups in model.kept],
                pruned=pruned,
                regrown=regrown,
                pruned_nll=pruned_nll,
                held_out_nll=nll,
                held_out_kl=kl,
                cost=self.budget.costs.of(model.counts),
                parameters=student.spec.parameter_count(),
                latency_ms=None if self.latencies is None else self.latencies.of(model.counts),
                updates=settings.updates,
                training_loss=loss,
                seconds=clock.seconds,
                importance=importance,
                entropy=entropy,
                gate_gradient=[gradient.tolist() for gradient in gradients],
            )
        )
        say(f"cycle {number + 1}: {len(pruned)} heads pruned, {len(regrown)} regrown, held-out loss {nll:.4f}, KL {kl:.4f}")
        return student

    def _prune_first(self) -> HeadMap:
        """Prune the dense model below the budget in the order that knows of compensation, and re-solve the rest."""
        total = sum(self.record.groups)
        needed = removed_uniformly(self.budget, self.record.groups)
        extra = self.settings.exchanged(0, total)
        share = min(1.0, (needed + extra) / total)
        floor, seed = self.budget.floor, self.settings.seed
        order = stepwise_order(self.dense, self.windows, heads=share, floor_groups=floor, seed=seed)
        plan = overshooting_plan(order, self.budget, extra)
        (student,) = compensate(self.dense, [plan], self.windows)
        self.model.take_back(student, plan.groups)
        self.model.kept = [sorted(groups) for groups in plan.groups]
        return [losses.tolist() for losses in order.group_losses]

    def _prune_more(self, number: int) -> HeadMap:
        """Park the least important heads of the model as trained, and re-solve the rest towards it."""
        model, student = self.model, self.model.student()
        neurons = tuple(tuple(range(layer.intermediate_size)) for layer in student.spec.layers)
        windows = self.windows.roll(-number * PRUNING_WINDOWS, 0)[:PRUNING_WINDOWS]
        scores, _ = score(
            student, windows[: PRUNING_WINDOWS // 2], model.kept, [list(n) for n in neurons], seed=self.settings.seed + number, with_neurons=False
        )
        gone = least_important(scores, self.settings.exchanged(number, sum(self.record.groups)), self.budget.floor)
        places = tuple(
            tuple(place for place, group in enumerate(groups) if Head(index, group) not in gone)
            for index, groups in enumerate(model.kept)
        )
        plan = PruningPlan(spec_digest(student.spec), "adapt", 0.0, 0.0, places, neurons)
        (student,) = compensate(student, [plan], windows, halves=("attn",))
        model.park(gone)
        model.take_back(student, model.kept)
        return self._by_head(scores)

    def _entropies(self, student: Decoder) -> HeadMap:
        windows = self._signals.windows
        meter = AttentionEntropy(student, windows.shape[1])
        sums: list[dict[int, float]] = [dict.fromkeys(groups, 0.0) for groups in self.model.kept]
        for batch in windows.split(2):
            for index, entropy in meter.of(batch).items():
                for group, value in zip(self.model.kept[index], entropy.tolist(), strict=True):
                    sums[index][group] += value * len(batch) / len(windows)
        return self._by_head(sums)

    def _by_head(self, values: Sequence[Mapping[int, float]]) -> HeadMap:
        return [[layer.get(group) for group in range(count)] for layer, count in zip(values, self.record.groups, strict=True)]

    def _reason_to_stop(self) -> str | None:
        cycles, patience = self.record.cycles, self.settings.patience
        if cycles[-1].number - self.record.best.number >= patience:
            return "held-out quality no longer rises"
        return "all cycles done" if len(cycles) >= self.settings.cycles else None


class Judge:
    """Quality of a model on held-out windows [V, T]: negative log-likelihood and divergence from ``dense``, nats a token."""

    def __init__(self, dense: Decoder, windows: Tensor) -> None:
        self._teacher = Teacher(dense, windows)

    @torch.no_grad()
    def __call__(self, decoder: Decoder) -> tuple[float, float]:
        windows = self._teacher.windows
        nll = kl = 0.0
        for number, window in enumerate(windows):
            states = decoder.final_norm(decoder.hidden_states(window[None, :-1]))[0]
            targets = self._teacher.targets([number])
            sums = judged(states, decoder.head_weight, targets, window[1:], self._teacher.temperature)
            kl, nll = kl + float(sums[0]), nll + float(sums[1])
        tokens = windows[:, 1:].numel()
        if not nll < float("inf"):
            raise InputError("the model predicts NaN; check its weights")
        return nll / tokens, kl / tokens


def removed_uniformly(budget: Budget, groups: Sequence[int]) -> int:
    """Heads to remove to keep the budget when every layer gives its share."""
    total = sum(groups)
    for removed in range(total):
        if budget.allows([count - removed * count // total for count in groups]):
            return removed
    return total


def overshooting_plan(order: RemovalOrder, budget: Budget, extra: int) -> PruningPlan:
    """The weakest plan of ``order`` that keeps the budget, less ``extra`` heads; one head and the floors stay."""
    total = sum(len(ranks) for ranks in order.group_ranks)
    least = max(1, sum(min(budget.floor, len(ranks)) for ranks in order.group_ranks))
    removed = next(n for n in range(total + 1) if budget.allows(order.plan(n / total).group_counts))
    return order.plan(max(removed, min(removed + extra, total - least)) / total)


def least_important(scores: Sequence[Mapping[int, float]], count: int, floor: int) -> list[Head]:
    """The ``count`` heads of lowest score; every layer keeps ``floor`` of them, and the model one."""
    left = [len(layer) for layer in scores]
    gone: list[Head] = []
    ranked = sorted((value, Head(index, group)) for index, layer in enumerate(scores) for group, value in layer.items())
    for _, head in ranked:
        if len(gone) < count and left[head.layer] > floor and sum(left) > 1:
            left[head.layer] -= 1
            gone.append(head)
    return gone


class _Clock:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[kind] = round(self.seconds.get(kind, 0.0) + time.monotonic() - start, 3)
