"""The speed of decoding at a width that was not built: bytes over bandwidth, corrected by what was measured of others."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sentinel.formats.sources import LoadedModel
from sentinel.measure.method import READ, generate_timed, interleave, random_prompts
from sentinel.measure.results import Sample, median
from sentinel.measure.suites.engines import Engines, Subject

PROMPT_TOKENS, NEW_TOKENS = 64, 20
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
    loaded: LoadedModel, precisions: Sequence[str], widths: Sequence[Ratios], threads: int | None, rounds: int = 5
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
    prompts = random_prompts(loaded.spec.vocab_size, 1, min(PROMPT_TOKENS, loaded.spec.max_seq_len // 2))
    count = min(NEW_TOKENS, loaded.spec.max_seq_len // 2)

    def once(subject: Subject, size: int) -> Sample:
        return {**generate_timed(subject.engine, prompts, count)[1], **engines.reading(size)}

    runs = {name: functools.partial(once, subjects[key], n_byte[key]) for name, key in timed.items()}
    samples = interleave(runs, rounds, "Timing level 3")
    bandwidth = float(np.median([one[READ] for rows in samples.values() for one in rows])) * 1e6
    factors: dict[str, tuple[list[float], list[float]]] = {}
    for precision in precisions:
        points = sorted(
            (float(n_byte[key]), median(samples[name], "total_ms") / count / (n_byte[key] / bandwidth))
            for name, key in timed.items()
            if key[0] == precision
        )
        factors[precision] = [size for size, _ in points], [factor for _, factor in points]
    for subject in subjects.values():
        subject.own_engine.release()
    return DecodeSpeed(bandwidth, n_byte, factors)
