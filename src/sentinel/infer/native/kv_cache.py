"""Keys and values of the native engine: one area for all slots, laid out as attention streams it (`kernels.attention`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentinel.models.spec import LayerSpec

from . import memory
from .blocks import padded

BLOCK = 32  # positions of a block of keys, and columns of a chunk of values


class KvArea:
    """Room for ``n_slot`` sequences of ``context`` positions (a multiple of 32), in half precision or float32.

    Per layer: keys [slots, KV heads, places / 32, D * 32], values [slots, KV heads, chunks of 32 columns, places, 32].
    A layer with a window has fewer places than the context: position p is in place p modulo their number
    (`AttentionSpec.cached`). Memory is taken as sequences grow.
    """

    def __init__(self, layers: Sequence[LayerSpec], n_slot: int, context: int, *, half: bool) -> None:
        self.half, self._layers, self._n_slot, self._context = half, tuple(layers), n_slot, context
        self.places = [layer.attention.cached(context) for layer in layers]
        size, kind = (2, np.float16) if half else (4, np.float32)
        shapes: list[tuple[int, ...]] = []
        for y, places in zip(layers, self.places, strict=True):
            chunks = padded(y.head_dim) // BLOCK
            shapes.append((n_slot, y.n_kv_head, places // BLOCK, y.head_dim * BLOCK))
            shapes.append((n_slot, y.n_kv_head, chunks, places, BLOCK))
        sizes = [padded(size * int(np.prod(shape)), 64) for shape in shapes]
        self._area = memory.buffer(sum(sizes), huge=False)
        self.arrays: list[NDArray[Any]] = []  # keys and values of the first layer, of the second, ...
        start = 0
        for shape, n_byte in zip(shapes, sizes, strict=True):
            used = size * int(np.prod(shape))
            self.arrays.append(self._area[start : start + used].view(kind).reshape(shape))
            start += n_byte

    @property
    def n_byte(self) -> int:
        """Bytes that are set aside."""
        return self._area.nbytes

    def addresses(self, layer: int) -> tuple[int, int]:
        """Where the keys and the values of a layer begin."""
        keys, values = self.arrays[2 * layer : 2 * layer + 2]
        return keys.ctypes.data, values.ctypes.data

    def copy(self, slot: int, source: KvArea, source_slot: int, reach: int) -> None:
        """Let ``slot`` hold what a slot of ``source`` does, which is of the same layers, and has held ``reach`` positions.

        There is room for as many here, so that rings are of one size once they have turned.
        """
        for i, places in enumerate(source.places):
            n = min(reach, places)
            blocks = -(-n // BLOCK)
            keys, values = self.arrays[2 * i : 2 * i + 2]
            other_keys, other_values = source.arrays[2 * i : 2 * i + 2]
            keys[slot, :, :blocks] = other_keys[source_slot, :, :blocks]
            values[slot, :, :, :n] = other_values[source_slot, :, :, :n]

    def widened(self) -> KvArea:
        """The same in float32."""
        wide = KvArea(self._layers, self._n_slot, self._context, half=False)
        for mine, theirs in zip(self.arrays, wide.arrays, strict=True):
            halves, target = mine.reshape(-1), theirs.reshape(-1)
            used = np.flatnonzero(halves.view(np.int16))  # the rest stays untouched: it takes no memory yet
            target[used] = halves[used]
        return wide
