"""What pruning half a layer at a time takes of memory, told beforehand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from sentinel.adapt.pruning.criterion import HalfCriterion
from sentinel.adapt.pruning.half_held import PIECE
from sentinel.adapt.pruning.half_layer import half_tensors
from sentinel.adapt.pruning.residual_stream import EMBEDDED, HALVES
from sentinel.adapt.pruning.room import BATCH
from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec

STREAMS = "streams of the text"


@dataclass(frozen=True)
class Need:
    """Bytes by what takes them, beside the program; ``spilled`` says that the streams are in files, and ``batch`` is how
    many windows are computed at once."""

    parts: Mapping[str, int]
    spilled: bool
    batch: int

    @property
    def n_byte(self) -> int:
        return sum(self.parts.values())


def need_by_layers(
    spec: ModelSpec,
    ranking: HalfCriterion,
    ratios: tuple[float, float],
    windows: tuple[int, int],
    *,
    compensate: bool,
    spilled: bool = False,
    batch: int = BATCH,
) -> Need:
    """What pruning by the ``ratios`` of heads and neurons takes at most, with that many ``windows`` of so many tokens."""
    count, length = windows
    tokens, at_once = count * length, min(batch, count) * length
    sizes = [_half_sizes(spec, index, half) for index in range(spec.n_layer) for half in HALVES]
    weights = max(4 * (whole + largest) for whole, largest, _, _ in sizes)
    matrices, activations, inputs = 0, 0, 0
    for (_, _, columns, wide), half in zip(sizes, HALVES * spec.n_layer, strict=True):
        ratio = ratios[0] if half == "attn" else ratios[1]
        kept = math.ceil(columns * (1 - ratio))
        if ranking.needs_text and ranking.reads(half, *ratios):
            matrices = max(matrices, 28 * columns**2 + 16 * spec.n_embd * columns)
        if compensate:
            matrices = max(matrices, 24 * kept**2 + 40 * kept * spec.n_embd)
            inputs = max(inputs, 4 * tokens * kept)
        activations = max(activations, 4 * at_once * (4 * wide + 4 * spec.n_embd))
    each = 4 * tokens * spec.n_embd * (1 + spec.block.parallel + spec.block.post_norm)
    streams = (2 if compensate else 1) * each + inputs
    pieces = 4 * (PIECE * 2 + min(EMBEDDED, tokens * spec.n_embd)) if spilled else 8 * PIECE
    parts = {"weights of half a layer": weights, "matrices of half a layer": matrices, "activations": activations}
    return Need({**parts, STREAMS: 0 if spilled else streams, "pieces that are read": pieces}, spilled, batch)


def _half_sizes(spec: ModelSpec, index: int, half: str) -> tuple[int, int, int, int]:
    """Of a half layer: weights, those of its largest tensor, columns of its output projection, and its widest row."""
    sizes = [math.prod(t.shape) for t in half_tensors(spec, index, "attn" if half == "attn" else "mlp")]
    layer = spec.layers[index]
    columns = layer.n_head * layer.head_dim if half == "attn" else layer.intermediate_size
    wide = layer.qkv_rows + columns if half == "attn" else columns
    return sum(sizes), max(sizes), columns, wide


def within(need: Need, again: list[Need], most: int, program: int) -> Need:
    """The first of ``need`` and ``again`` that fits ``most`` bytes with the ``program``; `InputError` where none does."""
    for each in (need, *again):
        if each.n_byte + program <= most:
            return dataclasses.replace(each)
    least = min(each.n_byte for each in (need, *again)) + program
    raise InputError(
        f"{most / 1e6:,.0f} MB are not enough to prune this model layer by layer, which takes {least / 1e6:,.0f} MB; raise "
        "--max-ram, or calibrate on shorter windows"
    )
