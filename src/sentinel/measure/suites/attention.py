"""One attention layer, head by head ("original") against fused, per number of tokens and phase.

Phase "decode" is one new token that looks at that many cached ones, "prefill" a whole sequence at once.
"""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import torch

from sentinel.errors import InputError
from sentinel.measure.method import Run, interleave, with_ratio
from sentinel.measure.results import Result, Sample, median
from sentinel.measure.suites.request import Request
from sentinel.models.kv_cache import KVCache
from sentinel.models.reference import ReferenceAttention

REFERENCE = "attention-original"


def run(request: Request) -> list[Result]:
    """Rows per phase, length and implementation; `InputError` for a model without heads and for lengths beyond its
    context."""
    loaded = request.loaded
    index = next((i for i, layer in enumerate(loaded.spec.layers) if layer.n_head), None)
    if index is None:
        raise InputError(f"{loaded.name} has no attention heads left to measure")
    lengths = request.settings.lengths
    if "lengths" in request.given:
        request.check_context(max(lengths) + 1)
    results: list[Result] = []
    for phase in ("decode", "prefill"):
        for length in (n for n in lengths if n < loaded.spec.max_seq_len):
            with torch.inference_mode():
                results.extend(_rows(request, index, phase, length))
    return results


def _rows(request: Request, index: int, phase: str, length: int) -> list[Result]:
    loaded, batch = request.loaded, request.settings.batch
    device, layer = loaded.decoder.device, loaded.spec.layers[index]
    new = 1 if phase == "decode" else length
    x = torch.randn(batch, new, loaded.spec.n_embd, generator=torch.Generator().manual_seed(0)).to(device)
    past = length if phase == "decode" else 0
    rotary = loaded.decoder.rotary(torch.arange(past, past + new, device=device)[None])
    fused = loaded.decoder.blocks[index].attn
    modules = {REFERENCE: ReferenceAttention(fused), "attention-optimised": fused}
    calls = max(1, 1024 // new if phase == "prefill" else 64)  # so that a sample is long against the clock
    outputs = {}

    def call(name: str, cache: KVCache | None) -> Sample:
        start = time.perf_counter()
        for _ in range(calls):
            if cache is not None:
                cache.lengths = [past]
            outputs[name] = modules[name](x, rotary, cache, 0, None)
        return {"total_ms": (time.perf_counter() - start) / calls * 1e3}

    runs: dict[str, Run] = {}
    for name in modules:
        kept = replace(layer, n_kv_head=layer.n_head) if name == REFERENCE else layer
        cache = KVCache(replace(loaded.spec, layers=(kept,)), batch, past + 1, device=device) if past else None
        runs[name] = functools.partial(call, name, cache)
    samples = interleave(runs, request.settings.rounds, f"Attention, {phase}, {length} tokens")
    original, optimised = (outputs[name] for name in modules)
    assert torch.allclose(original, optimised, rtol=1e-3, atol=1e-4), "the two attentions differ"
    rows = []
    for level, name in enumerate(modules):
        row = Result(
            suite="attention",
            model=loaded.name,
            weights=loaded.weights,
            engine=name,
            level=level,
            precision="fp32",
            phase=phase,
            heads_pruned=0.0,
            batch=batch,
            prompt_tokens=length,
            tokens_per_s=batch * new / median(samples[name], "total_ms") * 1e3,
            speedup_over=REFERENCE,
        )
        rows.append(with_ratio(row, samples[REFERENCE], samples[name]))
    return rows
