"""Does the controller pay? The same budget and the same time for one-shot pruning with recovery, over several seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from dataclasses import dataclass

from torch import Tensor

from sentinel.adapt.cycles.below_budget import overshooting_plan, removed_uniformly
from sentinel.adapt.cycles.budget import Budget
from sentinel.adapt.pruning.compensate import compensate
from sentinel.adapt.pruning.criteria.stepwise import stepwise_order
from sentinel.adapt.recovery.likelihood import perplexity_of
from sentinel.adapt.recovery.recover import Recovery, recover
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder

# Two-sided 95 % points of Student's t distribution by degrees of freedom; the last one, which is too wide, serves beyond.
T_95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
FEWEST_SEEDS = 3  # that an interval is told from


def one_shot(
    dense: Decoder, calibration: Tensor, train: Tensor, held_out: Tensor, budget: Budget, recovery: RecoverySettings
) -> tuple[Decoder, Recovery]:
    """Prune ``dense`` to the budget at once, in the order that knows of compensation; re-solve, then learn."""
    groups = [layer.n_kv_head for layer in dense.spec.layers]
    share = removed_uniformly(budget, groups) / sum(groups)
    order = stepwise_order(dense, calibration, heads=share, floor_groups=budget.floor, seed=recovery.seed)
    (student,) = compensate(dense, [overshooting_plan(order, budget, 0).kept], calibration)
    return student, recover(student, dense, train, held_out, recovery)


def one_shot_for(
    seconds: float,
    dense: Decoder,
    windows: tuple[Tensor, Tensor, Tensor],
    budget: Budget,
    recovery: RecoverySettings,
) -> tuple[Decoder, float, int]:
    """`one_shot` that learns for ``seconds`` on calibration, training and held-out ``windows``; with the seconds that it
    took from pruning to end, and its updates."""
    limited = dataclasses.replace(recovery, steps=None, minutes=max(seconds, 0.1) / 60)
    start = time.monotonic()
    model, found = one_shot(dense, *windows, budget, limited)
    return model, time.monotonic() - start, len(found.losses)


@dataclass(frozen=True)
class Trial:
    """One seed: perplexities over the unpruned model's on the texts that both are judged by, and what each took."""

    seed: int
    controller_ratio: float
    one_shot_ratio: float
    controller_seconds: float
    one_shot_seconds: float
    controller_updates: int
    one_shot_updates: int
    heads: int
    cycles: int


@dataclass(frozen=True)
class Comparison:
    """All trials at one budget."""

    budget: str
    text: str
    trials: tuple[Trial, ...]

    def __post_init__(self) -> None:
        if not self.trials:
            raise InputError("a comparison needs at least one seed")

    @property
    def difference(self) -> tuple[float, float | None, float | None]:
        """Log perplexity of the controller less one-shot's: mean and 95 % interval over seeds, None from under 3 seeds."""
        values = [math.log(trial.controller_ratio / trial.one_shot_ratio) for trial in self.trials]
        mean, count = statistics.fmean(values), len(values)
        if count < FEWEST_SEEDS:
            return mean, None, None
        half = T_95.get(count - 1, T_95[9]) * statistics.stdev(values) / math.sqrt(count)
        return mean, mean - half, mean + half

    @property
    def verdict(self) -> str:
        """One sentence that says whether the controller pays."""
        mean, low, high = self.difference
        seeds = "one seed" if len(self.trials) == 1 else f"{len(self.trials)} seeds"
        if low is None or high is None:
            return f"Perplexity differs by {_percent(mean)}; {seeds} can't tell whether the controller pays."
        span = f"{_percent(mean)} (95 % interval {_percent(low)} to {_percent(high)}, {seeds})"
        if high < 0:
            return f"The controller pays: perplexity differs by {span} from one-shot pruning with recovery."
        if low > 0:
            return f"The controller does not pay: perplexity is worse by {span} than one-shot pruning with recovery."
        return f"The controller does not pay: no difference from one-shot pruning with recovery, {span}."


def _percent(log_ratio: float) -> str:
    return f"{100 * (perplexity_of(log_ratio) - 1):+.1f} %"
