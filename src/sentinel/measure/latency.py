"""A table of decode latencies measured here, per half layer and kept count, to predict the speed of a pruning plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sentinel.adapt.integration import require_plain
from sentinel.adapt.pruning.plan import PruningPlan
from sentinel.measure.accelerator import synchronise
from sentinel.measure.method import interleave
from sentinel.measure.results import Sample, median
from sentinel.models.decoder import Block, Decoder
from sentinel.models.kv_cache import KVCache
from sentinel.models.spec import LayerSpec
from sentinel.models.width import Width

NEURON_POINTS = 9
CALLS = 8  # per sample


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one decoded token: fixed part, and each half layer by what it keeps, per kind of layer."""

    layers: tuple[LayerSpec, ...]
    fixed_ms: float
    attention_ms: dict[LayerSpec, dict[int, float]]
    mlp_ms: dict[LayerSpec, dict[int, float]]

    def predict(self, plan: PruningPlan) -> float:
        """Milliseconds per token of a plan, interpolated between the measured counts."""
        return self.predict_width(plan.width)

    def predict_width(self, width: Width) -> float:
        """Milliseconds per token at that width."""
        total = self.fixed_ms
        for layer, g, f in zip(self.layers, width.groups, width.neurons, strict=True):
            for count, table in ((g, self.attention_ms[layer]), (f, self.mlp_ms[layer])):
                total += float(np.interp(count, sorted(table), [table[k] for k in sorted(table)]))
        return total

    @property
    def dense_ms(self) -> float:
        """Milliseconds per token with nothing removed."""
        groups, neurons = ([getattr(y, name) for y in self.layers] for name in ("n_kv_head", "intermediate_size"))
        return self.predict_width(Width(tuple(groups), tuple(neurons)))


@torch.inference_mode()
def measure_latencies(decoder: Decoder, *, context: int = 64, rounds: int = 7) -> LatencyTable:
    """Time level 1's half layers at batch 1 with ``context`` cached positions, all counts in turn."""
    require_plain(decoder, "pruning to a speed")
    spec = decoder.spec
    context = min(context, spec.max_seq_len - 1)
    device = decoder.device
    x = torch.randn(1, 1, spec.n_embd, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(device)
    rotary = decoder.rotary(torch.tensor([[context]], device=device))
    # Weights must come from memory as they do in decoding, so that the blocks of one kind take turns within a sample.
    runs: dict[str, Callable[[], Sample]] = {"fixed": lambda: _timed(lambda _: decoder.logits(x), device)}
    kinds = {
        layer: [b for b, la in zip(decoder.blocks, spec.layers, strict=True) if la == layer] for layer in spec.layers
    }
    places: dict[str, tuple[LayerSpec, str, int]] = {}
    for number, (layer, blocks) in enumerate(kinds.items()):
        for count in range(layer.n_kv_head + 1):
            cache = KVCache(spec, 1, context + 1, device=device)

            def attention(call: int, count=count, blocks=blocks, cache=cache) -> None:
                block = blocks[call % len(blocks)]
                index = decoder.blocks.index(block)
                cache.lengths[index] = context
                _with_counts(block, count, None, lambda: block.attn(block.attn_input(x), rotary, cache, index, None))

            places[f"a{number}.{count}"] = (layer, "attn", count)
            runs[f"a{number}.{count}"] = lambda call=attention: _timed(call, device)
        for count in sorted({round(p) for p in np.linspace(0, layer.intermediate_size, NEURON_POINTS)}):

            def mlp(call: int, count=count, blocks=blocks) -> None:
                block = blocks[call % len(blocks)]
                _with_counts(block, None, count, lambda: block.mlp(block.mlp_input(x)))

            places[f"m{number}.{count}"] = (layer, "mlp", count)
            runs[f"m{number}.{count}"] = lambda call=mlp: _timed(call, device)
    samples = interleave(runs, rounds, "Measuring latencies")
    tables: dict[str, dict[LayerSpec, dict[int, float]]] = {"attn": {}, "mlp": {}}
    for name, (layer, half, count) in places.items():
        tables[half].setdefault(layer, {})[count] = median(samples[name], "total_ms")
    return LatencyTable(spec.layers, median(samples["fixed"], "total_ms"), tables["attn"], tables["mlp"])


def _timed(call: Callable[[int], object], device: torch.device) -> Sample:
    synchronise(device)
    start = time.perf_counter()
    for number in range(CALLS):
        call(number)
    synchronise(device)
    return {"total_ms": (time.perf_counter() - start) / CALLS * 1e3}


def _with_counts(block: Block, groups: int | None, neurons: int | None, call: Callable[[], object]) -> None:
    before = block.attn.active_groups, block.mlp.active_neurons
    block.use(before[0] if groups is None else groups, before[1] if neurons is None else neurons)
    call()
    block.use(*before)
