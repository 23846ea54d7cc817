"""Logits to tokens: greedy, temperature, top-k, top-p (nucleus), min-p, penalties, biases; seeded; log-probabilities."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError

if TYPE_CHECKING:
    from sentinel.infer.grammar import Constraint

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen.

    ``temperature`` 0 is greedy (then ``top_k``, ``top_p`` and ``min_p`` have no effect). ``top_k`` 0, ``top_p`` 1 and
    ``min_p`` 0 keep all tokens; ``min_p`` drops those less likely than that share of the likeliest (Nguyen et al. 2024).
    ``repetition_penalty`` divides positive and multiplies negative logits of tokens seen before (Keskar et al. 2019).
    ``presence_penalty`` is taken from the logit of every token that was generated before, ``frequency_penalty`` once for
    each time; tokens of the prompt do not count. ``logit_bias`` holds pairs of a token and what is added to its logit.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

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
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min-p must be from 0 to 1, not {self.min_p}")
        for name in ("presence", "frequency"):
            if not math.isfinite(value := getattr(self, f"{name}_penalty")):
                raise InputError(f"{name} penalty must be a finite number, not {value}")
        for token, bias in self.logit_bias:
            if token < 0 or not math.isfinite(bias):
                raise InputError(f"logit bias must be finite numbers of tokens from 0, not {bias} of {token}")


class Sampler:
    """Chooses one token per sequence of a batch; every sequence draws from a random stream of its own.

    ``constraint`` says which tokens may come at the beginning of each sequence, and goes on from there.
    """

    def __init__(self, settings: SamplingSettings, batch: int, constraint: Constraint | None = None) -> None:
        self.settings = settings
        self._constraints = [] if constraint is None else [constraint.copy() for _ in range(batch)]  # by row
        self._streams = [np.random.default_rng((settings.seed, row)) for row in range(batch)]
        self._prompts: dict[int, int] = {}  # by row: tokens of the prompt, which is the history of the first call

    def copy(self) -> Sampler:
        """A sampler that will draw what this one will, and leaves it as it is."""
        other = Sampler(self.settings, 0)
        other._streams = copy.deepcopy(self._streams)
        other._prompts = dict(self._prompts)
        other._constraints = [constraint.copy() for constraint in self._constraints]
        return other

    def numbers(self, n_token: int) -> list[list[float]]:
        """The numbers in [0, 1) by which the next ``n_token`` tokens of each row are drawn [n_token, rows]; zeros at
        temperature 0, which draws nothing."""
        if self.settings.temperature == 0:
            return [[0.0] * len(self._streams)] * n_token
        return [[float(stream.random()) for stream in self._streams] for _ in range(n_token)]

    def __call__(self, logits: Logits, history: Sequence[Sequence[int]]) -> list[int]:
        """Next token of each row of ``logits`` [B, V], given the tokens so far of each sequence."""
        if not self._constraints:
            return [self._row(row, logits[row], history[row]) for row in range(len(logits))]
        tokens: list[int] = []
        for row, constraint in enumerate(self._constraints):
            tokens.append(self._row(row, constraint.allowed(logits[row]), history[row]))
            constraint.take(tokens[-1])
        return tokens

    def _row(self, row: int, logits: Logits, history: Sequence[int]) -> int:
        settings = self.settings
        first = self._prompts.setdefault(row, len(history))
        if settings.repetition_penalty != 1.0:
            logits = penalise_repetition(logits, history, settings.repetition_penalty)
        if settings.presence_penalty or settings.frequency_penalty:
            logits = penalise_generated(logits, history[first:], settings.presence_penalty, settings.frequency_penalty)
        if settings.logit_bias:
            logits = with_bias(logits, settings.logit_bias)
        if settings.temperature == 0:
            return int(np.argmax(logits))
        probabilities = token_probabilities(logits, settings)
        return int(self._streams[row].choice(len(probabilities), p=probabilities))


def penalise_repetition(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    """A copy of ``logits`` [V] in which the tokens of ``history`` are less likely."""
    seen = np.unique(np.asarray(history, dtype=np.int64))
    changed = logits.copy()
    with np.errstate(
        over="ignore", divide="ignore", invalid="ignore"
    ):  # a penalty near 0 makes them as large as there are numbers
        penalised = np.where(
            changed[seen] > 0, changed[seen] / np.float32(penalty), changed[seen] * np.float32(penalty)
        )
    largest = np.finfo(np.float32).max
    changed[seen] = np.clip(penalised, -largest, largest)
    return changed


def penalise_generated(logits: Logits, generated: Sequence[int], presence: float, frequency: float) -> Logits:
    """A copy of ``logits`` [V], less ``presence`` for each token in ``generated`` and ``frequency`` for each time."""
    seen, times = np.unique(np.asarray(generated, dtype=np.int64), return_counts=True)
    changed = logits.copy()
    changed[seen] -= (presence + frequency * times).astype(np.float32)
    return changed


def with_bias(logits: Logits, bias: Sequence[tuple[int, float]]) -> Logits:
    """A copy of ``logits`` [V] with what ``bias`` adds to tokens; `InputError` for one that there is not."""
    changed = logits.copy()
    for token, value in bias:
        if token >= len(changed):
            raise InputError(f"logit bias names token {token}, but there are only {len(changed)}")
        changed[token] += value
    return changed


def token_probabilities(logits: Logits, settings: SamplingSettings) -> NDArray[np.float64]:
    """Probabilities [V] after temperature, top-k, top-p and min-p, in that order."""
    with np.errstate(over="ignore"):  # near temperature 0 all but the likeliest go to minus infinity
        scaled = (logits.astype(np.float64) - logits.max()) / settings.temperature
    if 0 < settings.top_k < len(scaled):
        threshold = np.partition(scaled, -settings.top_k)[-settings.top_k]
        scaled = np.where(scaled < threshold, -np.inf, scaled)
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if settings.top_p < 1:
        # Less likely ones weigh less than 1 - top_p all together: they are dropped, and need no sorting.
        likely = np.flatnonzero(probabilities >= min((1 - settings.top_p) / len(scaled), probabilities.max()))
        order = likely[np.argsort(-probabilities[likely], kind="stable")]
        before = np.cumsum(probabilities[order]) - probabilities[order]
        kept = order[before < settings.top_p]  # the first token is always kept
        probabilities = _only(probabilities, kept)
    if settings.min_p > 0:
        kept = np.flatnonzero(probabilities >= settings.min_p * probabilities.max())
        probabilities = _only(probabilities, kept)
    return probabilities


def _only(probabilities: NDArray[np.float64], kept: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.zeros_like(probabilities)
    found[kept] = probabilities[kept]
    return found / found.sum()


@dataclass(frozen=True)
class TokenChance:
    """A token, its natural log-probability, and the likeliest tokens of its place with theirs, the likeliest first."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...] = ()


def token_chance(logits: Logits, token: int, n_likeliest: int) -> TokenChance:
    """What the model itself gives a token, of ``logits`` [V] before temperature, penalties and biases."""
    shifted = logits.astype(np.float64) - logits.max()
    values = shifted - np.log(np.exp(shifted).sum())
    n_likeliest = min(n_likeliest, len(values))
    top = np.argpartition(-values, n_likeliest - 1)[:n_likeliest] if n_likeliest else np.zeros(0, np.int64)
    top = top[np.argsort(-values[top], kind="stable")]
    return TokenChance(token, float(values[token]), tuple((int(t), float(values[t])) for t in top))


def draw_nucleus(logits: Logits, top_p: float, stream: np.random.Generator) -> int:
    """A token of the nucleus of ``logits`` [V], at temperature 1, drawn by ``stream``.

    The distribution of `token_probabilities`, without putting the tokens in order: what all tokens draw is taken if it is
    in the nucleus, that is if the likelier ones (of equally likely ones those before it) make less than ``top_p``
    together, and drawn again if not.
    """
    likely = np.exp(logits - logits.max())
    sums = np.cumsum(likely, dtype=np.float64)
    while True:
        token = min(int(np.searchsorted(sums, stream.random() * sums[-1], side="right")), len(likely) - 1)
        chance = likely[token]
        before = likely[likely > chance].sum(dtype=np.float64) + chance * np.count_nonzero(likely[:token] == chance)
        if before < top_p * sums[-1]:
            return token
