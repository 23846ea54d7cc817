"""Keys and values of the native engine: one area for all slots, laid out as attention streams it (`kernels.attention`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sentinel.models.spec import LayerSpec

from . import memory
from .blocks import padded

BLOCK = 32  # positions of a block of keys, and columns of a chunk of values


KvKind = Literal["fp32", "half", "int8"]
TYPES: dict[KvKind, Any] = {"fp32": np.float32, "half": np.float16, "int8": np.int8}
SCALE_BYTES = 4  # of a position of a head in int8


def value_bytes(kind: KvKind, layers: Sequence[LayerSpec]) -> float:
    """Bytes of a cached key or value, on the average with its share of a scale."""
    size = np.dtype(TYPES[kind]).itemsize
    values = sum(y.n_kv_head * y.head_dim for y in layers)
    scales = sum(y.n_kv_head for y in layers) if kind == "int8" else 0
    return size + SCALE_BYTES * scales / values if scales else size


class KvArea:
    """Room for ``n_slot`` sequences of ``context`` positions (a multiple of 32), in float32, half precision or int8.

    Per layer: keys [slots, KV heads, places / 32, D * 32], values [slots, KV heads, chunks of 32 columns, places, 32]; in
    int8 also the scales of both, [slots, KV heads, places] each. A layer with a window has fewer places than the context:
    position p is in place p modulo their number (`AttentionSpec.cached`). Memory is taken as sequences grow.
    """

    def __init__(self, layers: Sequence[LayerSpec], n_slot: int, context: int, *, kind: KvKind) -> None:
        self.kind: KvKind = kind
        self._layers, self._n_slot, self._context = tuple(layers), n_slot, context
        self.places = [layer.attention.cached(context) for layer in layers]
        shapes: list[tuple[Any, tuple[int, ...]]] = []
        for y, places in zip(layers, self.places, strict=True):
            chunks = padded(y.head_dim) // BLOCK
            shapes.append((TYPES[kind], (n_slot, y.n_kv_head, places // BLOCK, y.head_dim * BLOCK)))
            shapes.append((TYPES[kind], (n_slot, y.n_kv_head, chunks, places, BLOCK)))
            if kind == "int8":
                shapes += [(np.float32, (n_slot, y.n_kv_head, places))] * 2
        sizes = [np.dtype(type_).itemsize * int(np.prod(shape)) for type_, shape in shapes]
        self._area = memory.buffer(sum(padded(size, 64) for size in sizes), huge=False)
        self._arrays: list[NDArray[Any]] = []  # as many of the first layer, then of the second, ...
        start = 0
        for (type_, shape), n_byte in zip(shapes, sizes, strict=True):
            self._arrays.append(self._area[start : start + n_byte].view(type_).reshape(shape))
            start += padded(n_byte, 64)

    @property
    def n_byte(self) -> int:
        """Bytes that are set aside."""
        return self._area.nbytes

    def of_layer(self, layer: int) -> list[NDArray[Any]]:
        """Keys and values of a layer, and in int8 the scales of both."""
        each = 4 if self.kind == "int8" else 2
        return self._arrays[each * layer : each * (layer + 1)]

    def copy(self, slot: int, source: KvArea, source_slot: int, reach: int) -> None:
        """Let ``slot`` hold what a slot of ``source`` does, which is of the same layers and kind, and has held ``reach``
        positions.

        There is room for as many here, so that rings are of one size once they have turned.
        """
        for i, places in enumerate(source.places):
            n = min(reach, places)
            blocks = -(-n // BLOCK)
            keys, values, *scales = self.of_layer(i)
            other_keys, other_values, *other_scales = source.of_layer(i)
            keys[slot, :, :blocks] = other_keys[source_slot, :, :blocks]
            values[slot, :, :, :n] = other_values[source_slot, :, :, :n]
            for mine, theirs in zip(scales, other_scales, strict=True):
                mine[slot, :, :n] = theirs[source_slot, :, :n]

    def widened(self) -> KvArea:
        """What is in half precision, in float32."""
        wide = KvArea(self._layers, self._n_slot, self._context, kind="fp32")
        for mine, theirs in zip(self._arrays, wide._arrays, strict=True):
            halves, target = mine.reshape(-1), theirs.reshape(-1)
            used = np.flatnonzero(halves.view(np.int16))  # the rest stays untouched: it takes no memory yet
            target[used] = halves[used]
        return wide
