"""How speeds are measured: everything in turn, a fixed reference in every round, medians, ratios with their interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from sentinel.errors import InputError
from sentinel.infer.engine import Engine
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.measure.results import Result, Sample, median, percentiles, speedup
from sentinel.progress import track

Run = Callable[[], Sample]
READ = "read_gb_s"  # in a sample: the rate at which memory was read beside it
ABOVE = (
    "faster than as many bytes were read beside it, in the same rounds: the readings were disturbed, or a part of the "
    "bytes stayed in a cache; the limit is at least what was reached"
)


class Generator(Protocol):
    """Generates by itself, where an `Engine` gives logits: Hugging Face and the engines of others."""

    name: str

    def weight_bytes_per_token(self) -> int: ...

    def step_bytes(self, n_sequence: int, context: float) -> int: ...

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, timings: Timings) -> list[list[int]]: ...


def interleave(
    runs: Mapping[str, Run], rounds: int, description: str, *, warm_up: bool = True
) -> dict[str, list[Sample]]:
    """Call all ``runs`` in turn, ``rounds`` times, after one more round with ``warm_up``; samples by name."""
    if rounds < 1:
        raise InputError(f"{rounds} rounds give no sample; ask for at least one")
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    turns = [(r, name) for r in range(-1 if warm_up else 0, rounds) for name in runs]
    for number, name in track(turns, description, len(turns)):
        sample = runs[name]()
        if number >= 0:
            samples[name].append(sample)
    return samples


def random_prompts(vocab_size: int, batch: int, length: int) -> list[list[int]]:
    """Seeded prompts of token ids; speed does not depend on their values."""
    return np.random.default_rng(0).integers(0, vocab_size, size=(batch, length)).tolist()


def timing_sample(timings: Timings) -> Sample:
    """Milliseconds of one generation."""
    ttft, tpot = timings.ttft_ms, timings.tpot_ms
    assert ttft is not None
    return {"ttft_ms": ttft, "tpot_ms": ttft if tpot is None else tpot, "total_ms": timings.stamps[-1] * 1e3}


def generate_timed(
    engine: Engine | Generator, prompts: Sequence[Sequence[int]], new_tokens: int
) -> tuple[list[list[int]], Sample]:
    """The greedy tokens that follow each prompt, and how long they took."""
    timings = Timings()
    if not isinstance(engine, Engine):
        return engine.generate(prompts, new_tokens, timings), timing_sample(timings)
    steps = list(generate_tokens(engine, prompts, new_tokens, timings=timings))
    rows = [[token for token in row if token is not None] for row in zip(*steps, strict=True)]
    return rows, timing_sample(timings)


def with_ratio(
    row: Result, reference: Sequence[Sample], samples: Sequence[Sample], key: str = "total_ms", *, passes: int = 1
) -> Result:
    """``row`` with its samples, and the speed-up of ``key`` over those of the reference."""
    ratio = speedup(reference, samples, key, passes)
    return replace(
        row,
        passes=passes,
        speedup=ratio.value,
        speedup_low=ratio.low,
        speedup_high=ratio.high,
        samples=list(samples),
        percentiles=percentiles(samples),
    )


def timed_result(
    row: Result,
    reference: Sequence[Sample],
    samples: Sequence[Sample],
    *,
    passes: int = 1,
    step_bytes: int | None = None,
    cache_mb: float | None = None,
) -> Result:
    """``row`` with its speeds: of decoding alone when that is its phase, else of whole generations.

    ``step_bytes`` is what one decode step reads at the least, ``cache_mb`` the size of the last-level cache.
    """
    decoding = row.phase == "decode"
    key, tokens = ("tpot_ms", 1) if decoding else ("total_ms", row.new_tokens or 1)
    ratio = with_ratio(row, reference, samples, key, passes=passes)
    return replace(
        with_roofline(ratio, step_bytes, cache_mb),
        tokens_per_s=(row.batch or 1) * tokens / median(samples, key) * 1e3,
        ttft_ms=None if decoding else median(samples, "ttft_ms"),
    )


def with_roofline(row: Result, step_bytes: int | None, cache_mb: float | None) -> Result:
    """``row`` with its time per token, and the limit that the readings in its samples set to steps of ``step_bytes``.

    What fits the last-level cache of ``cache_mb`` need not come from memory, so that there is no such limit.
    """
    row = replace(row, tpot_ms=median(row.samples, "tpot_ms"), step_bytes=step_bytes)
    if step_bytes is None or any(READ not in sample for sample in row.samples):
        return row
    row = replace(row, bandwidth_gb_s=median(row.samples, READ))
    if cache_mb is not None and step_bytes <= cache_mb * 1e6:
        return replace(row, roofline="cache")
    limits = [{"tpot_ms": step_bytes / sample[READ] / 1e6} for sample in row.samples]
    share = speedup(limits, row.samples, "tpot_ms", row.passes or 1)
    beyond = share.value > 1 and (share.low is None or share.low > 1)
    return replace(
        row,
        roofline="memory",
        roofline_tokens_per_s=(row.batch or 1) / median(limits, "tpot_ms") * 1e3,
        mbu=share.value,
        mbu_low=share.low,
        mbu_note=ABOVE if beyond else None,
    )
