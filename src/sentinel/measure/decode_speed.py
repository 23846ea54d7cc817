"""The speed of decoding at a width that was not built: bytes over bandwidth, corrected by what was measured of others;
and what a pruning plan costs, between a whole and a narrow model that are measured."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sentinel.adapt.pruning.fit_to import Cost
from sentinel.adapt.pruning.plan import PruningPlan
from sentinel.formats.sources import LoadedModel
from sentinel.measure.method import READ, generate_timed, interleave, random_prompts
from sentinel.measure.results import Sample, median
from sentinel.measure.suites.engines import Engines, Subject
from sentinel.models.decoder import Decoder

PROMPT_TOKENS, NEW_TOKENS = 64, 20
ROUNDS = 5
Ratios = tuple[float, float]  # shares of heads and neurons that are removed
WHOLE: Ratios = (0.0, 0.0)


@dataclass(frozen=True)
class DecodeSpeed:
    """``bandwidth`` in bytes a millisecond; ``n_byte`` of weights per token by precision and width; ``factors`` by
    precision: bytes, and how many times as long as bytes over bandwidth a generated token took there."""

    bandwidth: float
    n_byte: Mapping[tuple[str, Ratios], int]
    factors: Mapping[str, tuple[Sequence[float], Sequence[float]]]

    def tokens_per_s(self, precision: str, width: Ratios) -> float:
        """New tokens a second, the prompt's share included; the factor is interpolated by bytes between measured points."""
        n_byte = self.n_byte[precision, width]
        return 1e3 * self.bandwidth / (n_byte * float(np.interp(n_byte, *self.factors[precision])))


def measure_decode_speed(
    loaded: LoadedModel, precisions: Sequence[str], widths: Sequence[Ratios], threads: int | None, rounds: int = ROUNDS
) -> DecodeSpeed:
    """What predicts the speed of level 3 in ``precisions`` at ``widths``.

    Each precision is timed whole and at the narrowest, all in turn, and beside them the rate at which memory is read. Which
    heads and neurons go is random there, since speed knows only counts.
    """
    engines = Engines(loaded, threads)
    subjects = {
        (p, w): engines.at(3, p, heads=w[0], neurons=w[1]) for p in precisions for w in dict.fromkeys([WHOLE, *widths])
    }
    n_byte = {key: subject.own_engine.weight_bytes_per_token() for key, subject in subjects.items()}
    timed = {}
    for precision in precisions:
        own = [key for key in subjects if key[0] == precision]
        for key in ((precision, WHOLE), min(own, key=lambda key: n_byte[key])):
            timed[str(key)] = key
    run = _Decoding(loaded)

    def once(subject: Subject, size: int) -> Sample:
        return {**run.timed(subject), **engines.reading(size)}

    runs = {name: functools.partial(once, subjects[key], n_byte[key]) for name, key in timed.items()}
    samples = interleave(runs, rounds, "Timing level 3")
    bandwidth = float(np.median([one[READ] for rows in samples.values() for one in rows])) * 1e6
    factors: dict[str, tuple[list[float], list[float]]] = {}
    for precision in precisions:
        points = sorted(
            (float(n_byte[key]), run.milliseconds(samples[name]) / (n_byte[key] / bandwidth))
            for name, key in timed.items()
            if key[0] == precision
        )
        factors[precision] = [size for size, _ in points], [factor for _, factor in points]
    _release(subjects.values())
    return DecodeSpeed(bandwidth, n_byte, factors)


def measure_plan_cost(
    loaded: LoadedModel, dense: Decoder, precision: str, narrow: Ratios, threads: int | None = None
) -> tuple[Cost, float]:
    """Milliseconds that a generated token takes in a plan for ``dense``, and what it takes in the model as ``loaded``.

    That is at level 3 in ``precision``, or at level 2 for fp32. ``dense``, which may be the loaded model with K and V
    repeated, is timed whole and at the shares of heads and neurons of ``narrow``, ``loaded`` beside it, all in turn; what
    lies between is interpolated by the number of parameters, for decoding at batch 1 is bound by the bytes of weights.
    """
    level = 2 if precision == "fp32" else 3
    engines = Engines(dataclasses.replace(loaded, decoder=dense), threads)
    subjects = {"narrow": engines.at(level, precision, heads=narrow[0], neurons=narrow[1])}
    subjects["whole"] = subjects["loaded"] = engines.at(level, precision)
    if dense is not loaded.decoder:
        subjects["loaded"] = Engines(loaded, threads).at(level, precision)
    run = _Decoding(loaded)
    samples = interleave(
        {name: functools.partial(run.timed, subject) for name, subject in subjects.items()},
        ROUNDS,
        f"Timing level {level}",
    )
    took = {name: run.milliseconds(rows) for name, rows in samples.items()}
    sizes = {name: subject.spec.parameter_count() for name, subject in subjects.items()}
    slope = (took["whole"] - took["narrow"]) / max(1, sizes["whole"] - sizes["narrow"])
    _release(subjects.values())

    def cost(plan: PruningPlan) -> float:
        return took["narrow"] + slope * (plan.width.of(dense.spec).parameter_count() - sizes["narrow"])

    return cost, took["loaded"]


class _Decoding:
    """One generation of `NEW_TOKENS` tokens after `PROMPT_TOKENS`, or of as many as the model can take."""

    def __init__(self, loaded: LoadedModel) -> None:
        most = loaded.spec.max_seq_len // 2
        self._prompts = random_prompts(loaded.spec.vocab_size, 1, min(PROMPT_TOKENS, most))
        self._count = min(NEW_TOKENS, most)

    def timed(self, subject: Subject) -> Sample:
        return generate_timed(subject.engine, self._prompts, self._count)[1]

    def milliseconds(self, samples: Sequence[Sample]) -> float:
        """Of a generated token, its share of the prompt included: the median."""
        return median(samples, "total_ms") / self._count


def _release(subjects: Iterable[Subject]) -> None:
    for subject in subjects:
        subject.own_engine.release()
