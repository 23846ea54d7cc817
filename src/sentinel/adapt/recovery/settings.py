"""How a student learns, and how far a run has come by steps or by time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sentinel.adapt.recovery.student import CHOICES
from sentinel.errors import InputError

WARM_UP = 0.05  # share of the run in which the learning rate rises


@dataclass(frozen=True)
class RecoverySettings:
    """How a student learns.

    It ends after ``steps`` updates or ``minutes`` in all, whichever comes first. A step takes ``batch`` windows at once,
    ``accumulate`` times, in every process. ``top`` of the teacher's tokens are kept per position. ``state_weight`` adds
    the relative distance of the final states to the loss. Held-out text is judged ``evaluations`` times, and learning
    ends early after ``patience`` of them without a lower divergence, the start aside. ``bf16`` None means: where it pays.
    ``gradient_checkpointing`` keeps what enters a layer and computes the rest again (Chen et al. 2016): less memory, the
    same numbers, about a third more arithmetic.
    """

    steps: int | None = None
    minutes: float | None = None
    train: str = "all"
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    temperature: float = 1.0
    top: int = 64
    state_weight: float = 0.0
    evaluations: int = 10
    patience: int = 3
    checkpoint_minutes: float = 2.0
    bf16: bool | None = None
    seed: int = 0
    tensorboard: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise InputError("say how long to learn: a number of steps or of minutes")
        if self.train not in CHOICES:
            raise InputError(f"what to train, {self.train!r}, is not known; the choices are {', '.join(CHOICES)}")
        for name in ("steps", "minutes", "batch", "accumulate", "learning_rate", "temperature", "top", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name.replace('_', ' ')} must be above 0, not {value:g}")
        for name in ("weight_decay", "state_weight", "checkpoint_minutes"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name.replace('_', ' ')} must not be below 0, as {getattr(self, name):g} is")
        for name in ("evaluations", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")

    def done(self, step: int, seconds: float) -> float:
        """Share of the run that is over, 0..1."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(by_steps, by_time))

    def rate(self, step: int, seconds: float) -> float:
        """Learning rate of the update after ``step`` others: a linear rise, then half a cosine down to 0."""
        done = self.done(step, seconds)
        if done < WARM_UP:
            return self.learning_rate * max(done / WARM_UP, 0.1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
