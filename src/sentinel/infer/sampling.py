"""Logits to tokens: greedy, temperature, top-k, top-p (nucleus), repetition penalty; seeded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen.

    ``temperature`` 0 is greedy (what is set below then has no effect). ``top_k`` 0 and ``top_p`` 1 keep all tokens.
    ``repetition_penalty`` divides positive and multiplies negative logits of tokens seen before (Keskar et al. 2019).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"temperature must be at least 0, not {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top-k must be at least 0, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if not self.repetition_penalty > 0:
            raise InputError(f"repetition penalty must be above 0, not {self.repetition_penalty}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, not {self.seed}")


class Sampler:
    """Chooses one token per sequence of a batch; every sequence draws from a random stream of its own."""

    def __init__(self, settings: SamplingSettings, batch: int) -> None:
        self.settings = settings
        self._streams = [np.random.default_rng((settings.seed, row)) for row in range(batch)]

    def copy(self) -> Sampler:
        """A sampler that will draw what this one will, and leaves it as it is."""
        other = Sampler(self.settings, 0)
        other._streams = copy.deepcopy(self._streams)
        return other

    def __call__(self, logits: Logits, history: Sequence[Sequence[int]]) -> list[int]:
        """Next token of each row of ``logits`` [B, V], given the tokens so far of each sequence."""
        return [self._row(row, logits[row], history[row]) for row in range(len(logits))]

    def _row(self, row: int, logits: Logits, history: Sequence[int]) -> int:
        settings = self.settings
        if settings.repetition_penalty != 1.0:
            logits = penalise_repetition(logits, history, settings.repetition_penalty)
        if settings.temperature == 0:
            return int(np.argmax(logits))
        probabilities = token_probabilities(logits, settings)
        return int(self._streams[row].choice(len(probabilities), p=probabilities))


def penalise_repetition(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    """A copy of ``logits`` [V] in which the tokens of ``history`` are less likely."""
    seen = np.unique(np.asarray(history, dtype=np.int64))
    changed = logits.copy()
    changed[seen] = np.where(changed[seen] > 0, changed[seen] / penalty, changed[seen] * penalty)
    return changed


def token_probabilities(logits: Logits, settings: SamplingSettings) -> NDArray[np.float64]:
    """Probabilities [V] after temperature, top-k and top-p, in that order."""
    with np.errstate(over="ignore"):  # near temperature 0 all but the likeliest go to minus infinity
        scaled = (logits.astype(np.float64) - logits.max()) / settings.temperature
    if 0 < settings.top_k < len(scaled):
        threshold = np.partition(scaled, -settings.top_k)[-settings.top_k]
        scaled = np.where(scaled < threshold, -np.inf, scaled)
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if settings.top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= settings.top_p]] = 0.0  # the first token is always kept
        probabilities /= probabilities.sum()
    return probabilities


def draw_nucleus(logits: Logits, top_p: float, number: float) -> int:
    """The token that a uniform ``number`` in [0, 1) draws from the nucleus of ``logits`` [V], at temperature 1.

    The distribution of `token_probabilities`, but only tokens that can be in the nucleus are put in order: those whose
    probability is below (1 - top_p) / V make less than 1 - top_p together.
    """
    likely = np.exp(logits - logits.max())
    total = float(likely.sum(dtype=np.float64))
    found = np.flatnonzero(likely >= (1 - top_p) / len(likely) * total)
    chances = likely[found].astype(np.float64)
    order = np.argsort(-chances, kind="stable")
    sums = np.cumsum(chances[order])
    size = min(int(np.searchsorted(sums, top_p * total)) + 1, len(sums))  # the first token is always kept
    place = int(np.searchsorted(sums[:size], number * sums[size - 1], side="right"))
    return int(found[order[min(place, size - 1)]])
