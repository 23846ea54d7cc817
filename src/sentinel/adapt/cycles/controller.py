"""The controller: cycles of prune, measure, grow and learn, until held-out quality no longer rises.

Each cycle prunes a little below the budget and regrows up to it, so that the heads that are kept are chosen again on the
model as trained so far. The share that is exchanged falls from cycle to cycle (as in RigL, Evci et al. 2020).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sentinel.adapt.cycles.adaptation import Adaptation, Cycle, HeadMap
from sentinel.adapt.cycles.below_budget import least_important, overshooting_plan, removed_uniformly
from sentinel.adapt.cycles.budget import Budget, CostTable
from sentinel.adapt.cycles.masked import Head, MaskedModel
from sentinel.adapt.cycles.regrow import WarmUp, choose_regrowth, gate_gradients
from sentinel.adapt.pruning.attention_entropy import AttentionEntropy
from sentinel.adapt.pruning.compensate import compensate
from sentinel.adapt.pruning.criteria.stepwise import head_scores, stepwise_order
from sentinel.adapt.pruning.gated_model import short_windows
from sentinel.adapt.recovery.likelihood import perplexity_of
from sentinel.adapt.recovery.recover import Recovery, recover
from sentinel.adapt.recovery.run import make_accelerator
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.recovery.state import HeldOut
from sentinel.adapt.recovery.teacher import Teacher
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.width import Kept
from sentinel.progress import counting, say, track

SIGNAL_LENGTH = 256  # tokens of a window that signals are measured on
SIGNAL_WINDOWS = 16
PRUNING_WINDOWS = 24  # calibration windows of a cycle's pruning


@dataclass(frozen=True)
class ControllerSettings:
    """How the controller goes about it.

    At most ``cycles`` cycles, each with the ``recovery`` to learn. ``overshoot`` is the share of all heads that the first
    one prunes below the budget. A regrown head's gate opens over ``warm_up`` updates, and its weights learn ``boost``
    times as fast. It ends after ``patience`` cycles without a better held-out quality.
    """

    recovery: RecoverySettings = field(default_factory=lambda: RecoverySettings(steps=200, evaluations=4))
    cycles: int = 3
    overshoot: float = 0.05
    warm_up: int = 30
    boost: float = 3.0
    patience: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cycles < 1 or self.patience < 1:
            raise InputError("cycles and patience must be at least 1")
        if not 0 <= self.overshoot < 1:
            raise InputError(f"overshoot must be a share of heads from 0 to 1, not {self.overshoot:g}")
        if not self.boost > 0:
            raise InputError(f"boost must be above 0, not {self.boost:g}")

    def exchanged(self, cycle: int, total: int) -> int:
        """Heads that a cycle prunes below the budget: fewer from cycle to cycle, at least one."""
        return max(1, round(self.overshoot * total * (1 - cycle / self.cycles)))

    def flat(self) -> dict[str, Any]:
        """All of it in one dictionary."""
        own = dataclasses.asdict(self)
        return {**{f"recovery {name}": value for name, value in own.pop("recovery").items()}, **own}


class Controller:
    """Adapts ``dense`` to a budget, on the device that Accelerate chose, where ``dense`` is then.

    ``calibration`` windows [W, T] are for pruning and signals, ``train`` and ``held_out`` ones for learning.
    ``latencies`` are the predicted milliseconds of a decoded token, for the record.
    """

    def __init__(
        self,
        dense: Decoder,
        calibration: Tensor,
        train: Tensor,
        held_out: Tensor,
        budget: Budget,
        settings: ControllerSettings,
        *,
        latencies: CostTable | None = None,
        name: str = "",
        identity: str = "",
    ) -> None:
        dense.to(
            make_accelerator().device
        )  # regrown heads are followed while they learn, so that nothing may move then
        self.dense, self.budget, self.settings = dense, budget, settings
        self.calibration, self.train, self.held_out = calibration, train, held_out
        self.model = MaskedModel(dense)
        self._signals = Teacher(dense, short_windows(calibration, SIGNAL_LENGTH)[:SIGNAL_WINDOWS])
        groups = [layer.n_kv_head for layer in dense.spec.layers]
        asked = (name, budget.text, budget.unit, budget.limit, identity, settings.flat(), groups)
        self.record = Adaptation(*asked, latencies=latencies)

    def resume(self, record: Adaptation, weights: Mapping[str, Tensor]) -> None:
        """Go on after the cycles of ``record``, whose last one left ``weights``. Raises `InputError` for those of a run
        with other settings, naming the first difference."""

        def asked(of: Adaptation) -> dict[str, Any]:
            return {"model": of.model, "budget": of.budget, **of.settings, "weights or text": of.identity}

        mine, theirs = asked(self.record), asked(record)
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
        with counting("Cycles", self.settings.cycles - len(self.record.cycles)) as advance:
            while self.record.stopped is None:
                student = self.cycle()
                self.record.stopped = self._reason_to_stop()
                after_cycle(student, self.record.best is self.record.cycles[-1])
                advance()
        return self.record

    def cycle(self) -> Decoder:
        """One cycle; returns the compacted model that it ends with."""
        number, model, clock = len(self.record.cycles), self.model, _Clock()
        with clock("prune"):
            before = [list(groups) for groups in model.kept]
            importance = self._prune_first() if number == 0 else self._prune_more(number)
            pruned = [Head(i, g) for i, groups in enumerate(before) for g in groups if g not in model.kept[i]]
        with clock("measure"):
            entropy = self._entropies(model.student())
            gradients = gate_gradients(model, self._signals, range(len(self._signals.windows)))
        regrown = choose_regrowth(gradients, model.parked, model.counts, self.budget)
        model.regrow(regrown)
        with clock("learn"):
            student, found = self._learn(number, regrown)
        self.record.dense_nll = found.teacher_nll
        start, end = found.held_out[0], found.best
        self.record.cycles.append(
            Cycle(
                number=number,
                kept=[list(groups) for groups in model.kept],
                pruned=pruned,
                regrown=regrown,
                pruned_nll=_nll(start),
                held_out_nll=_nll(end),
                held_out_kl=end.mean_kl,
                cost=self.budget.costs.of(model.counts),
                parameters=student.spec.parameter_count(),
                latency_ms=None if self.record.latencies is None else self.record.latencies.of(model.counts),
                updates=len(found.losses),
                training_loss=sum(found.losses) / len(found.losses),
                seconds=clock.seconds,
                importance=importance,
                entropy=entropy,
                gate_gradient=[gradient.tolist() for gradient in gradients],
            )
        )
        say(_line(self.record))
        return student

    def _learn(self, number: int, regrown: Sequence[Head]) -> tuple[Decoder, Recovery]:
        """Train what takes part; regrown heads come in by and by."""
        settings, student = self.settings, self.model.student()
        warm_up = WarmUp(student, self.model.kept, regrown, settings.warm_up, settings.boost)
        recovery = dataclasses.replace(settings.recovery, seed=self._seed(number))
        found = recover(
            student,
            self.dense,
            self.train,
            self.held_out,
            recovery,
            after_step=lambda step: warm_up.after_update(step.step),
        )
        self.model.take_back(student, self.model.kept)
        return student, found

    def _seed(self, number: int) -> int:
        return self.settings.seed * 1000 + number

    def _prune_first(self) -> HeadMap:
        """Prune the dense model below the budget in the order that knows of compensation, and re-solve the rest."""
        total = sum(self.record.groups)
        needed = removed_uniformly(self.budget, self.record.groups)
        extra = self.settings.exchanged(0, total)
        share = min(1.0, (needed + extra) / total)
        floor = self.budget.floor
        order = stepwise_order(self.dense, self.calibration, heads=share, floor_groups=floor, seed=self._seed(0))
        plan = overshooting_plan(order, self.budget, extra)
        (student,) = compensate(self.dense, [plan.kept], self.calibration)
        self.model.take_back(student, plan.kept.groups)
        self.model.kept = [sorted(groups) for groups in plan.kept.groups]
        return [losses.tolist() for losses in order.group_losses]

    def _prune_more(self, number: int) -> HeadMap:
        """Park the least important heads of the model as trained, and re-solve the rest towards it."""
        model, student = self.model, self.model.student()
        neurons = [list(range(layer.intermediate_size)) for layer in student.spec.layers]
        windows = self.calibration.roll(-number * PRUNING_WINDOWS, 0)[:PRUNING_WINDOWS]
        part = windows[: PRUNING_WINDOWS // 2]
        scores = head_scores(student, part, model.kept, seed=self._seed(number))
        gone = least_important(scores, self.settings.exchanged(number, sum(self.record.groups)), self.budget.floor)
        places = [
            [place for place, group in enumerate(groups) if Head(index, group) not in gone]
            for index, groups in enumerate(model.kept)
        ]
        (student,) = compensate(student, [Kept(places, neurons)], windows, halves=("attn",))
        model.park(gone)
        model.take_back(student, model.kept)
        return self._by_head(scores)

    def _entropies(self, student: Decoder) -> HeadMap:
        windows = self._signals.windows
        meter = AttentionEntropy(student, windows.shape[1])
        sums: list[dict[int, float]] = [dict.fromkeys(groups, 0.0) for groups in self.model.kept]
        batches = windows.split(2)
        for batch in track(batches, "Measuring attention", len(batches)):
            for index, entropy in meter.of(batch).items():
                for group, value in zip(self.model.kept[index], entropy.tolist(), strict=True):
                    sums[index][group] += value * len(batch) / len(windows)
        return self._by_head(sums)

    def _by_head(self, values: Sequence[Mapping[int, float]]) -> HeadMap:
        layers = zip(values, self.record.groups, strict=True)
        return [[layer.get(group) for group in range(count)] for layer, count in layers]

    def _reason_to_stop(self) -> str | None:
        cycles, patience = self.record.cycles, self.settings.patience
        if cycles[-1].number - self.record.best.number >= patience:
            return "held-out quality no longer rises"
        return "all cycles done" if len(cycles) >= self.settings.cycles else None


def _nll(found: HeldOut) -> float:
    (nll,) = found.nll.values()  # a model without levels has one
    return nll


def _line(record: Adaptation) -> str:
    cycle = record.cycles[-1]
    over = perplexity_of(cycle.held_out_nll - (record.dense_nll or 0.0))
    return (
        f"cycle {cycle.number + 1}: {len(cycle.pruned)} heads pruned, {len(cycle.regrown)} regrown, {cycle.heads} of "
        f"{sum(record.groups)} take part; held-out perplexity {over:.3f}x that of the unpruned model"
    )


class _Clock:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[kind] = round(self.seconds.get(kind, 0.0) + time.monotonic() - start, 3)
