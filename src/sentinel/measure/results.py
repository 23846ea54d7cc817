"""One schema for every measurement: environment, raw samples, one record per result.

A results file is ``{"schema": ..., "environment": {...}, "results": [{...}]}``. Fields that do not apply are null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sentinel.errors import InputError
from sentinel.files import write_text

SCHEMA = "sentinel-results/1"
Sample = dict[str, float]


@dataclass(frozen=True)
class Interval:
    """A ratio and the 95 % bootstrap interval of it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Environment:
    """Where and with what the numbers were measured. Sizes in GB are 10^9 bytes."""

    cpu: str
    cores: int
    threads: int
    memory_gb: float
    bandwidth_gb_s: float | None
    system: str
    device: str
    versions: dict[str, str]
    measured_at: str


@dataclass(frozen=True)
class Result:
    """One measured row. ``speedup`` is over the row that ``speedup_over`` names, measured in turn in the same run.

    ``tokens_per_s`` counts new tokens of the whole batch over the whole time, prefill included; ``mbu`` is the share of
    the measured memory bandwidth that decoding's weight and KV bytes account for; ``samples`` hold milliseconds.
    """

    suite: str
    model: str
    weights: str
    engine: str
    level: int | None = None
    precision: str | None = None
    phase: str | None = None
    heads_pruned: float | None = None
    neurons_pruned: float | None = None
    batch: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    tokens_per_s: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    peak_memory_mb: float | None = None
    weight_bytes_per_token: int | None = None
    roofline_tokens_per_s: float | None = None
    mbu: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_over: str | None = None
    same_tokens_as_reference: bool | None = None
    parameters: int | None = None
    criterion: str | None = None
    compensated: bool | None = None
    text: str | None = None
    context: int | None = None
    tokens: int | None = None
    perplexity: float | None = None
    perplexity_stderr: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_stderr: float | None = None
    bits_per_byte: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    repetition: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    head_ranks: list[list[int]] | None = None
    samples: list[Sample] = field(default_factory=list)
    percentiles: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def no_difference(self) -> bool:
        """True when the interval of the speed-up spans 1."""
        return (
            self.speedup_low is not None
            and self.speedup_high is not None
            and (self.speedup_low <= 1.0 <= self.speedup_high)
        )


def percentiles(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """p10, p50 and p90 of every quantity in ``samples``."""
    keys = samples[0].keys() if samples else ()
    return {key: {f"p{p}": float(np.percentile([s[key] for s in samples], p)) for p in (10, 50, 90)} for key in keys}


def median(samples: Sequence[Sample], key: str) -> float:
    """Median of one quantity."""
    return float(np.median([sample[key] for sample in samples]))


def speedup(reference: Sequence[Sample], samples: Sequence[Sample], key: str) -> Interval:
    """Median time of the reference over that of ``samples``, with a 95 % interval.

    The two were measured in turn, so that rounds are drawn in pairs: what disturbed a round disturbed both sides.
    """
    a = np.array([sample[key] for sample in reference])
    b = np.array([sample[key] for sample in samples])
    rows = np.random.default_rng(0).integers(0, len(a), size=(2000, len(a)))
    ratios = np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Interval(float(np.median(a) / np.median(b)), float(low), float(high))


@dataclass(frozen=True)
class ResultSet:
    """What a results file holds."""

    environment: Environment
    results: list[Result]

    def to_json(self) -> str:
        body = {
            "schema": SCHEMA,
            "environment": dataclasses.asdict(self.environment),
            "results": [dataclasses.asdict(result) for result in self.results],
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_text(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> ResultSet:
        """Inverse of `write`; `InputError` names what is wrong with the file."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror})") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a results file: it is not valid JSON ({error})") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else None
            raise InputError(f"{path} has schema {found!r}; this version reads {SCHEMA!r}, so measure again")
        try:
            return cls(Environment(**data["environment"]), [_result(row) for row in data["results"]])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a whole results file ({error}); measure again") from error


def _result(row: dict[str, Any]) -> Result:
    result = Result(**row)
    for name in ("tokens_per_s", "tpot_ms", "speedup"):
        value = getattr(result, name)
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise TypeError(f"{name} is {value!r}")
    return result
