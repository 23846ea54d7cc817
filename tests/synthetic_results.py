"""Hand-made results of every suite, for what is told of results."""

from __future__ import annotations

from typing import Any

from sentinel.measure.results import Environment, Result, ResultSet, percentiles, speedup

PLACE = Environment("a <CPU>", 2, 2, 24.0, 30.0, "Linux", "cpu", {"torch": "2"}, "2026-01-01T00:00:00+00:00")
REFERENCE_MS = (10.0, 11.0, 10.5)
TEXT = {"text": "wiki", "context": 512, "tokens": 1000}


def samples(milliseconds: tuple[float, ...]) -> list[dict[str, float]]:
    return [{"ttft_ms": m, "tpot_ms": m / 10, "total_ms": 3 * m} for m in milliseconds]


def row(engine: str, milliseconds: tuple[float, ...] = REFERENCE_MS, over=REFERENCE_MS, **fields: Any) -> Result:
    """A row whose speed and ratio follow from its samples."""
    ratio = speedup(samples(over), samples(milliseconds), "total_ms")
    middle = sorted(milliseconds)[len(milliseconds) // 2]
    made = {
        "suite": "decode",
        "model": "m",
        "weights": "real",
        "engine": engine,
        "precision": "fp32",
        "batch": 1,
        "prompt_tokens": 64,
        "new_tokens": 20,
        "tokens_per_s": 20 / (3 * middle) * 1e3,
        "ttft_ms": middle,
        "tpot_ms": middle / 10,
        "mbu": 0.5,
        "roofline_tokens_per_s": 4000.0,
        "speedup": ratio.value,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "speedup_over": "hf-generate",
        "parameters": 1000,
        "weight_bytes_per_token": 400_000_000,
        "samples": samples(milliseconds),
        "percentiles": percentiles(samples(milliseconds)),
    }
    return Result(**{**made, **fields})


def speed(level: int, middle_ms: float, heads: float = 0.0, precision: str = "fp32", **fields: Any) -> Result:
    """A row of suite "pruning": a level at a pruning ratio."""
    size = {"fp32": 4.0, "int8": 1.0, "int4": 0.5}[precision] * (1 - heads / 4)
    engine = f"level {level}" + (f" {precision}" if level == 3 else "")
    times = tuple(middle_ms * factor for factor in (0.99, 1.0, 1.01))
    own = {
        "suite": "pruning",
        "level": level,
        "precision": precision,
        "heads_pruned": heads,
        "neurons_pruned": 0.0,
        "weight_bytes_per_token": round(1e8 * size),
        "parameters": round(1000 * (1 - heads / 4)),
    }
    return row(engine, times, **{**own, **fields})


def quality(heads: float, ratio: float, precision: str = "fp32", **fields: Any) -> Result:
    """A row of suite "quality" without a speed."""
    made = {
        "suite": "quality",
        "model": "m",
        "weights": "real",
        "engine": "level 1" if precision == "fp32" else f"level 3 {precision}",
        "level": 1 if precision == "fp32" else 3,
        "precision": precision,
        "heads_pruned": heads,
        "neurons_pruned": 0.0,
        "perplexity": 20 * ratio,
        "perplexity_stderr": 0.3,
        "perplexity_ratio": ratio,
        "parameters": round(1000 * (1 - heads / 4)),
        **TEXT,
    }
    if heads:
        ranks = [[layer * 4 + head for head in range(4)] for layer in range(3)]
        made |= {"criterion": "fisher", "compensated": True, "head_ranks": ranks}
    return Result(**{**made, **fields})


def all_results() -> ResultSet:
    """Rows of every suite."""
    rows = [row("hf-generate", suite=suite) for suite in ("decode", "levels", "pruning")]
    rows += [speed(0, 12.0, peak_memory_mb=900.0, suite="decode"), speed(1, 6.0, peak_memory_mb=900.0, suite="decode")]
    rows += [speed(3, 1.5, precision="int8", peak_memory_mb=300.0, suite="decode")]
    for heads in (0.0, 0.3, 0.5, 0.7):
        rows += [speed(1, 6.0 - heads, heads), speed(2, 4.0 - heads, heads), speed(3, 1.5 - heads / 3, heads, "int8")]
    rows += [speed(2, 3.0, 0.5, neurons_pruned=0.5)]
    rows += [speed(level, 6.0 - level, heads, suite="levels") for level in (0, 1, 2) for heads in (0.0, 0.5)]
    rows += [quality(0.0, 1.0), quality(0.0, 1.004, "int8"), quality(0.0, 1.08, "int4")]
    for heads, ratio in ((0.3, 1.03), (0.5, 1.2), (0.7, 1.9)):
        rows += [quality(heads, ratio), quality(heads, ratio * 1.5, compensated=False)]
        rows += [quality(heads, ratio * 1.1, criterion="entropy")]
    for phase in ("decode", "prefill"):
        for tokens in (32, 512):
            for name, heads in (("original", 0.0), ("optimised", 0.0), ("optimised", 0.5)):
                fields = {"suite": "attention", "phase": phase, "prompt_tokens": tokens, "heads_pruned": heads}
                rows.append(row(f"attention-{name}", (4.0, 4.1, 4.2), speedup_over="attention-original", **fields))
    for tokens in (64, 1000):
        for heads in (0.0, 0.5):
            fields = {"suite": "context", "phase": "decode", "prompt_tokens": tokens, "speedup_over": "level 2"}
            rows.append(speed(2, 4.0 - heads, heads, **fields))
    for batch in (1, 4, 16):
        rows.append(row("hf-generate", suite="batch", batch=batch, tokens_per_s=30.0 * batch))
        rows.append(speed(2, 4.0, suite="batch", batch=batch, tokens_per_s=90.0 * batch**0.5))
    loading = {"load_ms": 900.0, "first_token_ms": 1100.0, "loaded_memory_mb": 500.0, "peak_memory_mb": 700.0}
    rows += [row(name, suite="load", level=level, **loading) for name, level in (("hf-generate", None), ("level 1", 1))]
    runs = {suite: {"model": "m", "expand_kv": True, "heads": [0.0, 0.5]} for suite in ("pruning", "quality")}
    return ResultSet(PLACE, rows, runs)
