"""Benchmark suites. Every speed is a ratio to a named reference that was measured in turn in the same run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sentinel.errors import InputError
from sentinel.infer.engines import Engine, make_engine
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.measure.hugging_face import HuggingFaceReference
from sentinel.measure.memory import MemoryRequest, measure_peak_memory
from sentinel.measure.results import Result, Sample, median, percentiles, speedup
from sentinel.models.kv_cache import KVCache
from sentinel.models.reference import ReferenceAttention
from sentinel.models.sources import LoadedModel
from sentinel.progress import track, working

ATTENTION_LENGTHS = (32, 64, 128, 256, 512)
ATTENTION_REFERENCE = "attention-original"


@dataclass(frozen=True)
class DecodeSettings:
    """What is generated: batch x (prompt_tokens + new_tokens), in ``rounds`` rounds after one warm-up round."""

    levels: tuple[int, ...] = (0, 1, 2, 3)
    precisions: tuple[str, ...] = ("int8",)
    threads: int | None = None
    batch: int = 1
    prompt_tokens: int = 64
    new_tokens: int = 20
    rounds: int = 5


def interleave(runs: Mapping[str, Callable[[], Sample]], rounds: int, description: str) -> dict[str, list[Sample]]:
    """Call all ``runs`` in turn, ``rounds`` times after one warm-up round; samples by name."""
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


def bench_decode(
    loaded: LoadedModel,
    settings: DecodeSettings,
    bandwidth_gb_s: float | None,
    *,
    source: str,
    random_weights: int | None = None,
) -> list[Result]:
    """Generation by Hugging Face ``generate()`` and by the levels asked for, in turn.

    ``source`` and ``random_weights`` say how a process of its own loads the model again to measure peak memory.
    """
    prompts = random_prompts(loaded.spec.vocab_size, settings.batch, settings.prompt_tokens)
    reference = HuggingFaceReference(loaded.decoder)
    tokens: dict[str, list[list[int]]] = {}

    def run_reference() -> Sample:
        timings = Timings()
        tokens[reference.name] = reference.generate(prompts, settings.new_tokens, timings)
        return timing_sample(timings)

    runs: dict[str, Callable[[], Sample]] = {reference.name: run_reference}
    engines: dict[str, Engine] = {}
    for level in settings.levels:
        for precision in settings.precisions if level == 3 else (None,):
            with working(f"Preparing level {level}"):
                engine = make_engine(loaded.decoder, level, precision=precision, threads=settings.threads)
                list(generate_tokens(engine, prompts, 1))  # compiles what is not compiled yet
            engines[engine.name] = engine
    for name, engine in engines.items():

        def run_engine(engine=engine, name=name) -> Sample:
            timings = Timings()
            steps = list(generate_tokens(engine, prompts, settings.new_tokens, timings=timings))
            tokens[name] = [[t for t in row if t is not None] for row in zip(*steps, strict=True)]
            return timing_sample(timings)

        runs[name] = run_engine
    samples = interleave(runs, settings.rounds, "Decoding")
    spec = loaded.spec
    base = Result(
        suite="decode",
        model=loaded.name,
        weights=loaded.weights,
        engine="",
        precision="fp32",
        heads_pruned=0.0,
        neurons_pruned=0.0,
        batch=settings.batch,
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        weight_bytes_per_token=spec.weight_bytes_per_token(),
        parameters=spec.parameter_count(),
        speedup_over=reference.name,
    )
    context = settings.prompt_tokens + settings.new_tokens // 2
    results = []
    for name in track(samples, "Measuring memory", len(samples)):
        engine = engines.get(name)
        weight_bytes = spec.weight_bytes_per_token() if engine is None else engine.weight_bytes_per_token()
        request = MemoryRequest(
            source, random_weights, name, settings.prompt_tokens, settings.new_tokens, settings.batch
        )
        peak = measure_peak_memory(request, engine)
        kv = settings.batch * context * spec.kv_bytes_per_position(4 if engine is None else engine.kv_bytes)
        row = timed_result(base, name, samples[reference.name], samples[name], bandwidth_gb_s, weight_bytes + round(kv))
        results.append(
            replace(
                row,
                level=None if engine is None else engine.level,
                precision="fp32" if engine is None else engine.precision,
                weight_bytes_per_token=weight_bytes,
                peak_memory_mb=peak,
                same_tokens_as_reference=tokens[name] == tokens[reference.name],
            )
        )
    return results


def timed_result(
    base: Result,
    engine: str,
    reference: Sequence[Sample],
    samples: Sequence[Sample],
    bandwidth_gb_s: float | None,
    step_bytes: int,
) -> Result:
    """``base`` with the speeds of ``samples``; ``step_bytes`` is what one decode step reads at the least."""
    ratio = speedup(reference, samples, "total_ms")
    batch, new = base.batch or 1, base.new_tokens or 1
    tpot = median(samples, "tpot_ms")
    limit_ms = None if bandwidth_gb_s is None else step_bytes / bandwidth_gb_s / 1e6
    return replace(
        base,
        engine=engine,
        tokens_per_s=batch * new / median(samples, "total_ms") * 1e3,
        ttft_ms=median(samples, "ttft_ms"),
        tpot_ms=tpot,
        roofline_tokens_per_s=None if limit_ms is None else batch / limit_ms * 1e3,
        mbu=None if limit_ms is None else limit_ms / tpot,
        speedup=ratio.value,
        speedup_low=ratio.low,
        speedup_high=ratio.high,
        samples=list(samples),
        percentiles=percentiles(samples),
    )


def timing_sample(timings: Timings) -> Sample:
    """Milliseconds of one generation."""
    ttft, tpot = timings.ttft_ms, timings.tpot_ms
    assert ttft is not None
    return {"ttft_ms": ttft, "tpot_ms": ttft if tpot is None else tpot, "total_ms": timings.stamps[-1] * 1e3}


def bench_attention(
    loaded: LoadedModel, lengths: Sequence[int] = ATTENTION_LENGTHS, *, batch: int = 1, rounds: int = 7
) -> list[Result]:
    """One attention layer, head by head ("original") against fused, per number of tokens and phase.

    Phase "decode" is one new token that looks at that many cached ones, "prefill" a whole sequence at once.
    Raises `InputError` for a model without heads and for lengths beyond its context.
    """
    index = next((i for i, layer in enumerate(loaded.spec.layers) if layer.n_head), None)
    if index is None:
        raise InputError(f"{loaded.name} has no attention heads left to measure")
    if max(lengths) >= loaded.spec.max_seq_len:
        raise InputError(f"{max(lengths)} tokens do not fit the context of {loaded.name}, {loaded.spec.max_seq_len}")
    results: list[Result] = []
    for phase in ("decode", "prefill"):
        for length in lengths:
            with torch.inference_mode():
                results.extend(_attention_rows(loaded, index, phase, batch, length, rounds))
    return results


def _attention_rows(loaded: LoadedModel, index: int, phase: str, batch: int, length: int, rounds: int) -> list[Result]:
    device, layer = loaded.decoder.device, loaded.spec.layers[index]
    new = 1 if phase == "decode" else length
    x = torch.randn(batch, new, loaded.spec.n_embd, generator=torch.Generator().manual_seed(0)).to(device)
    past = length if phase == "decode" else 0
    rotary = loaded.decoder.rotary(torch.arange(past, past + new, device=device)[None])
    fused = loaded.decoder.blocks[index].attn
    modules = {ATTENTION_REFERENCE: ReferenceAttention(fused), "attention-optimised": fused}
    calls = max(1, 1024 // new if phase == "prefill" else 64)  # so that a sample is long against the clock
    outputs = {}

    def run(name: str, cache: KVCache | None) -> Sample:
        start = time.perf_counter()
        for _ in range(calls):
            if cache is not None:
                cache.lengths = [past]
            outputs[name] = modules[name](x, rotary, cache, 0, None)
        return {"total_ms": (time.perf_counter() - start) / calls * 1e3}

    runs: dict[str, Callable[[], Sample]] = {}
    for name in modules:
        kept = replace(layer, n_kv_head=layer.n_head) if name == ATTENTION_REFERENCE else layer
        cache = KVCache(replace(loaded.spec, layers=(kept,)), batch, past + 1, device=device) if past else None
        runs[name] = functools.partial(run, name, cache)
    samples = interleave(runs, rounds, f"Attention, {phase}, {length} tokens")
    original, optimised = (outputs[name] for name in modules)
    assert torch.allclose(original, optimised, rtol=1e-3, atol=1e-4), "the two attentions differ"
    base = Result(
        suite="attention",
        model=loaded.name,
        weights=loaded.weights,
        engine="",
        precision="fp32",
        phase=phase,
        heads_pruned=0.0,
        batch=batch,
        prompt_tokens=length,
        speedup_over=ATTENTION_REFERENCE,
    )
    results = []
    for level, name in enumerate(modules):
        ratio = speedup(samples[ATTENTION_REFERENCE], samples[name], "total_ms")
        results.append(
            replace(
                base,
                engine=name,
                level=level,
                tokens_per_s=batch * new / median(samples[name], "total_ms") * 1e3,
                speedup=ratio.value,
                speedup_low=ratio.low,
                speedup_high=ratio.high,
                samples=samples[name],
                percentiles=percentiles(samples[name]),
            )
        )
    return results
