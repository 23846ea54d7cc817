"""One schema for every measurement: environment, raw samples, one record per result.

A results file is ``{"schema": ..., "environment": {...}, "runs": {...}, "results": [{...}]}``; ``runs`` says by suite which
model was measured with which settings. Fields that do not apply are null.
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

SCHEMA = "sentinel-results/2"
Sample = dict[str, float]
DRAWS = 2000  # of the bootstrap
PRUNED, UNPRUNED = "pruned", "not pruned"  # configurations, where both stand in one table
FEWEST_ROUNDS = 3  # that an interval is told from

KEY_FIELDS = (
    "suite", "model", "weights", "engine", "level", "precision", "phase", "heads_pruned", "neurons_pruned", "batch",
    "prompt_tokens", "new_tokens", "configuration", "criterion", "seed", "compensated", "recovery_steps", "text",
    "context", "stride", "tokens", "speedup_over",
)  # fmt: skip
# Fields of a row that are above zero wherever they apply.
POSITIVE = (
    "tokens_per_s", "ttft_ms", "tpot_ms", "load_ms", "first_token_ms", "peak_memory_mb", "speedup", "speedup_low",
    "speedup_high", "perplexity",
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A ratio and the 95 % bootstrap interval of it, or None for its ends where too few rounds tell of none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Environment:
    """Where and with what the numbers were measured. Sizes in GB are 10^9 bytes.

    ``cpu_mhz`` is the frequency before and after the suites; ``steal`` the share of processor time that the host gave to
    others meanwhile. ``last_level_cache_mb`` is what all last-level caches hold that this process may use. These are None
    where the system does not tell. ``bandwidth_gb_s`` is of older files, whose rooflines are all at that one bandwidth.
    """

    cpu: str
    cores: int
    threads: int
    memory_gb: float
    bandwidth_gb_s: float | None
    system: str
    device: str
    versions: dict[str, str]
    measured_at: str
    cpu_mhz: tuple[float, ...] | None = None
    steal: float | None = None
    last_level_cache_mb: float | None = None

    def differences(self, other: Environment) -> list[str]:
        """What makes speeds measured in the two hard to compare, in words."""
        names = ("cpu", "cores", "threads", "memory_gb", "system", "device", "versions")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name} {mine} against {theirs}" for name, mine, theirs in pairs if mine != theirs]


@dataclass(frozen=True)
class Result:
    """One measured row. ``speedup`` is over the row that ``speedup_over`` names, measured in turn in the same run.

    ``tokens_per_s`` counts new tokens of the whole batch over the whole time, prefill included, but for ``phase`` "decode";
    A decode step reads ``step_bytes``, and ``bandwidth_gb_s`` is the median rate at which the engine's threads read as many
    bytes and do nothing else, once in each round (``read_gb_s`` of ``samples``, which else hold milliseconds). ``roofline``
    is "memory", or "cache" where the bytes fit the last-level cache and memory sets no limit. ``mbu`` is the limit's time
    per token over the row's, ``mbu_low`` the lower end of its 95 % interval, and ``mbu_note`` says why it is above 1.
    ``passes`` are the stretches of the run, far apart, that the samples come from, as many of each in turn.
    ``gops_per_thread`` are the billions of operations a second and thread that a prefill needs, by the model's arithmetic.
    ``saved_over_removed`` is the share of the unpruned model's TPOT that is saved over the share of its bytes per token
    that is removed, both in the same engine, with the ends of its 95 % interval.
    ``seen_kind`` tells whether calibration, order or recovery has read text of the same kind, None where that is not known;
    ``by_kind`` holds, by text, what the row says of it alone. Where some kinds were not seen, the row is of these.
    ``accuracy`` is the share of a task's ``items`` that were right, ``chance`` that of guessing.
    ``acceptance`` is the share of a draft's proposed tokens that were right. ``load_ms`` and ``first_token_ms`` count from
    the start of a process. Of a server, ``batch`` are clients at once, ``errors`` answers that failed or were not those of
    the prompt alone, ``refused`` those that were told to come again later, ``memory_growth`` the share by which its memory
    grew; ``share`` is what ``share_of`` says.
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
    gops_per_thread: float | None = None
    load_ms: float | None = None
    first_token_ms: float | None = None
    loaded_memory_mb: float | None = None
    peak_memory_mb: float | None = None
    weight_bytes_per_token: int | None = None
    step_bytes: int | None = None
    bandwidth_gb_s: float | None = None
    roofline: str | None = None
    roofline_tokens_per_s: float | None = None
    mbu: float | None = None
    mbu_low: float | None = None
    mbu_note: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_over: str | None = None
    same_tokens_as_reference: bool | None = None
    saved_over_removed: float | None = None
    saved_over_removed_low: float | None = None
    saved_over_removed_high: float | None = None
    acceptance: float | None = None
    parameters: int | None = None
    configuration: str | None = None
    parameters_before: int | None = None
    growth: float | None = None
    recovery_steps: int | None = None
    criterion: str | None = None
    compensated: bool | None = None
    seed: int | None = None
    text: str | None = None
    seen_kind: bool | None = None
    context: int | None = None
    stride: int | None = None
    tokens: int | None = None
    nll: float | None = None
    perplexity: float | None = None
    perplexity_stderr: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_stderr: float | None = None
    bits_per_byte: float | None = None
    by_kind: dict[str, dict[str, Any]] = field(default_factory=dict)
    items: int | None = None
    accuracy: float | None = None
    accuracy_stderr: float | None = None
    chance: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    repetition: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    errors: int | None = None
    refused: int | None = None
    memory_growth: float | None = None
    share: float | None = None
    share_of: str | None = None
    head_ranks: list[list[int]] | None = None
    passes: int | None = None
    samples: list[Sample] = field(default_factory=list)
    percentiles: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """What the row is about: rows of two files with the same key measure the same thing."""
        return tuple(getattr(self, name) for name in KEY_FIELDS)

    @property
    def is_reference(self) -> bool:
        """True for the row that the others of its kind are compared with."""
        same = self.engine == self.speedup_over and self.configuration != UNPRUNED
        return same and not self.heads_pruned and not self.neurons_pruned

    @property
    def has_interval(self) -> bool:
        """True when enough rounds were measured to tell how far the speed-up may be off."""
        return self.speedup_low is not None and self.speedup_high is not None

    @property
    def no_difference(self) -> bool:
        """True when the interval of the speed-up spans 1. Without an interval nothing is known."""
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


def speedup(reference: Sequence[Sample], samples: Sequence[Sample], key: str, passes: int = 1) -> Interval:
    """Median time of the reference over that of ``samples``, with a 95 % interval from `FEWEST_ROUNDS` rounds on.

    The two were measured in turn, so that rounds are drawn in pairs: what disturbed a round disturbed both sides. Samples
    of several ``passes``, as many of each, are drawn in two stages, passes and then rounds of them (the cluster bootstrap
    of Davison and Hinkley, Bootstrap Methods, 1997, 3.8): rounds of one pass share the state that the machine was in, and
    the interval tells how far that moves the ratio. Raises `InputError` without usable samples.
    """
    a = np.array([sample[key] for sample in reference])
    b = np.array([sample[key] for sample in samples])
    if len(a) == 0 or len(a) != len(b):
        raise InputError(f"{len(a)} samples of the reference and {len(b)} of the other give no ratio; measure again")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and a.min() > 0 and b.min() > 0):
        raise InputError(f"a sample of {key} is not a time above zero; measure again")
    if len(a) % passes:
        raise InputError(f"{len(a)} samples are not as many of each of {passes} passes; measure again")
    ratio = float(np.median(a) / np.median(b))
    if len(a) < FEWEST_ROUNDS:
        return Interval(ratio, None, None)
    random, rounds = np.random.default_rng(0), len(a) // passes
    starts = rounds * random.integers(0, passes, size=(DRAWS, passes, 1))
    rows = (starts + random.integers(0, rounds, size=(DRAWS, passes, rounds))).reshape(DRAWS, -1)
    ratios = np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Interval(ratio, float(low), float(high))


@dataclass(frozen=True)
class ResultSet:
    """What a results file holds. ``runs``: by suite, the model and the settings of its rows."""

    environment: Environment
    results: list[Result]
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def passes_of(self, suite: str) -> int:
        """How many passes of a suite the rows come from; 0 when it is not among the ``runs``."""
        if suite not in self.runs:
            return 0
        return max((row.passes or 1 for row in self.results if row.suite == suite), default=0)

    def to_json(self) -> str:
        body = {
            "schema": SCHEMA,
            "environment": dataclasses.asdict(self.environment),
            "runs": self.runs,
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
            data = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror})") from error
        except ValueError as error:
            raise InputError(f"{path} is not a results file: it is not valid JSON ({error})") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else None
            raise InputError(f"{path} has schema {found!r}; this version reads {SCHEMA!r}, so measure again")
        try:
            place = dict(data["environment"])
            mhz = place.get("cpu_mhz")
            place["cpu_mhz"] = None if mhz is None else tuple(mhz)
            runs = {str(name): dict(run) for name, run in data["runs"].items()}
            return cls(Environment(**place), [_result(*row) for row in enumerate(data["results"], 1)], runs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is not a whole results file ({error}); measure again") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _result(number: int, row: dict[str, Any]) -> Result:
    result = Result(**row)
    what = f"row {number}, {result.suite} {result.engine}"
    for name in POSITIVE:
        value = getattr(result, name)
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise ValueError(f"{what}: {name} is {value!r}")
    if result.passes is not None and (
        not 0 < result.passes <= len(result.samples) or len(result.samples) % result.passes
    ):
        raise ValueError(f"{what}: {len(result.samples)} samples are not as many of each of {result.passes} passes")
    if result.speedup is not None:
        if not result.samples or not all(v > 0 for sample in result.samples for v in sample.values()):
            raise ValueError(f"{what}: no usable samples")
        low, high = result.speedup_low, result.speedup_high
        if len(result.samples) < FEWEST_ROUNDS:  # earlier versions gave such rows an interval
            return dataclasses.replace(result, speedup_low=None, speedup_high=None)
        if low is None or high is None or low > high:
            raise ValueError(f"{what}: the interval of the speed-up is {low} to {high}")
    return result
