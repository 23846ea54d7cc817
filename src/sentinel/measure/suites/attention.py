"""One attention layer, head by head ("original") against fused, per number of tokens, phase and share of heads.

Phase "decode" is one new token that looks at that many cached ones, "prefill" a whole sequence at once. The layer's weights
stay in the processor's cache, so that memory bandwidth sets no roofline here. The original masks pruned heads, which saves
nothing; it is measured with all of them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sentinel.adapt.pruning.compact import expand_kv
from sentinel.errors import InputError
from sentinel.measure.accelerator import synchronise
from sentinel.measure.method import Run, with_ratio
from sentinel.measure.results import Result, Sample, median
from sentinel.measure.suites.request import Request
from sentinel.models.decoder import Attention, Decoder
from sentinel.models.kv_cache import KVCache
from sentinel.models.reference import ReferenceAttention
from sentinel.models.spec import ModelSpec
from sentinel.models.width import with_own_groups

REFERENCE, OPTIMISED = "attention-original", "attention-optimised"


@dataclass(frozen=True)
class _Part:
    """One implementation at one share of heads."""

    engine: str
    level: int
    heads: float
    forward: Callable[..., Tensor]
    cache_spec: ModelSpec

    @property
    def name(self) -> str:
        return f"{self.engine} {self.heads}"


def run(request: Request) -> list[Result]:
    """Rows per phase, length, implementation and share of heads.

    ``heads_pruned`` is what the layer's whole number of groups comes nearest to. Raises `InputError` for a model without
    heads and for lengths that were given and are beyond its context.
    """
    loaded, settings = request.loaded, request.settings
    index = next((i for i, layer in enumerate(loaded.spec.layers) if layer.n_head), None)
    if index is None:
        raise InputError(f"{loaded.name} has no attention heads left to measure")
    if "lengths" in request.given:
        request.check_context(max(settings.lengths) + 1)
    decoder = expand_kv(loaded.decoder) if settings.expand_kv else loaded.decoder
    parts = _parts(loaded.decoder, decoder, index, settings.heads)
    results: list[Result] = []
    for phase in ("decode", "prefill"):
        for length in (n for n in settings.lengths if n < loaded.spec.max_seq_len):
            with torch.inference_mode():
                results.extend(_rows(request, decoder, parts, phase, length))
    return results


def _parts(whole: Decoder, pruned: Decoder, index: int, heads: tuple[float, ...]) -> list[_Part]:
    """The layer with all heads as in ``whole``, the model as loaded, and with fewer as in ``pruned``, whose grouped keys
    and values may be repeated."""
    layer = whole.spec.layers[index]
    separate = with_own_groups(replace(whole.spec, layers=(layer,)))
    parts = [_Part(REFERENCE, 0, 0.0, ReferenceAttention(whole.blocks[index].attn), separate)]
    groups = pruned.spec.layers[index].n_kv_head
    for kept in sorted({round((1 - ratio) * groups) for ratio in heads}, reverse=True):
        source = whole if kept == groups else pruned
        layer = source.spec.layers[index]
        forward = functools.partial(
            _with_groups, source.blocks[index].attn, layer.n_kv_head if kept == groups else kept
        )
        share = round(1 - kept / groups, 4)
        parts.append(_Part(OPTIMISED, 1, share, forward, replace(source.spec, layers=(layer,))))
    return parts


def _with_groups(attention: Attention, groups: int, *inputs: object) -> Tensor:
    before, attention.active_groups = attention.active_groups, groups
    try:
        return attention(*inputs)
    finally:
        attention.active_groups = before


def _rows(request: Request, decoder: Decoder, parts: list[_Part], phase: str, length: int) -> list[Result]:
    batch, device = request.settings.batch, decoder.device
    new = 1 if phase == "decode" else length
    past = length if phase == "decode" else 0
    x = torch.randn(batch, new, decoder.spec.n_embd, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    x = x.to(device)
    rotary = decoder.rotary(torch.arange(past, past + new, device=device)[None])
    calls = max(1, 1024 // new if phase == "prefill" else 64)  # so that a sample is long against the clock
    outputs: dict[str, Tensor] = {}

    def call(part: _Part, cache: KVCache | None) -> Sample:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(calls):
            if cache is not None:
                cache.lengths = [past]
            outputs[part.name] = part.forward(x, rotary, cache, 0, None)
        synchronise(device)
        return {"total_ms": (time.perf_counter() - start) / calls * 1e3}

    runs: dict[str, Run] = {}
    for part in parts:
        cache = KVCache(part.cache_spec, batch, past + 1, device=device) if past else None
        runs[part.name] = functools.partial(call, part, cache)
    rows = {part.name: _row(request, part, phase, length) for part in parts}
    samples = request.in_turn(runs, rows, f"Attention, {phase}, {length} tokens")
    whole = [outputs[part.name] for part in parts if not part.heads]
    assert all(torch.allclose(whole[0], other, rtol=1e-3, atol=1e-4) for other in whole), "the two attentions differ"
    found = []
    for part in parts:
        row = with_ratio(rows[part.name], samples[parts[0].name], samples[part.name], passes=request.number)
        found.append(replace(row, tokens_per_s=batch * new / median(samples[part.name], "total_ms") * 1e3))
    return found


def _row(request: Request, part: _Part, phase: str, length: int) -> Result:
    return Result(
        suite="attention",
        model=request.loaded.name,
        weights=request.loaded.weights,
        engine=part.engine,
        level=part.level,
        precision="fp32",
        phase=phase,
        heads_pruned=part.heads,
        batch=request.settings.batch,
        prompt_tokens=length,
        speedup_over=REFERENCE,
    )
