"""How speeds are measured: everything in turn, a fixed reference in every round, medians, ratios with their interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sentinel.errors import InputError
from sentinel.infer.engines import Engine
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.measure.hugging_face import HuggingFaceReference
from sentinel.measure.results import Result, Sample, median, percentiles, speedup
from sentinel.progress import track

Run = Callable[[], Sample]


def interleave(runs: Mapping[str, Run], rounds: int, description: str) -> dict[str, list[Sample]]:
    """Call all ``runs`` in turn, ``rounds`` times after one warm-up round; samples by name."""
    if rounds < 1:
        raise InputError(f"{rounds} rounds give no sample; ask for at least one")
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    turns = [(r, name) for r in range(-1, rounds) for name in runs]
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
    engine: Engine | HuggingFaceReference, prompts: Sequence[Sequence[int]], new_tokens: int
) -> tuple[list[list[int]], Sample]:
    """The greedy tokens that follow each prompt, and how long they took."""
    timings = Timings()
    if isinstance(engine, HuggingFaceReference):
        return engine.generate(prompts, new_tokens, timings), timing_sample(timings)
    steps = list(generate_tokens(engine, prompts, new_tokens, timings=timings))
    rows = [[token for token in row if token is not None] for row in zip(*steps, strict=True)]
    return rows, timing_sample(timings)


def with_ratio(row: Result, reference: Sequence[Sample], samples: Sequence[Sample], key: str = "total_ms") -> Result:
    """``row`` with its samples, and the speed-up of ``key`` over those of the reference."""
    ratio = speedup(reference, samples, key)
    return replace(
        row,
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
    bandwidth_gb_s: float | None = None,
    step_bytes: int | None = None,
) -> Result:
    """``row`` with the speeds of ``samples``; ``step_bytes`` is what one decode step reads at the least."""
    batch, new = row.batch or 1, row.new_tokens or 1
    tpot = median(samples, "tpot_ms")
    limit_ms = None if bandwidth_gb_s is None or step_bytes is None else step_bytes / bandwidth_gb_s / 1e6
    return replace(
        with_ratio(row, reference, samples),
        tokens_per_s=batch * new / median(samples, "total_ms") * 1e3,
        ttft_ms=median(samples, "ttft_ms"),
        tpot_ms=tpot,
        roofline_tokens_per_s=None if limit_ms is None else batch / limit_ms * 1e3,
        mbu=None if limit_ms is None else limit_ms / tpot,
    )
