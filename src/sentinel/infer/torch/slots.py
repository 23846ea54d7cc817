"""Keys and values of several sequences of unequal lengths, one per row of a `KVCache`, and what a pass sees of them.

A `Decoder` writes and reads them through a view that is its cache for one pass: `SameLength` of rows that are equally long,
without any mask, `OwnLength` of any rows, under one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sentinel.models.kv_cache import KVCache, Rows, newest_positions
from sentinel.models.layer_spec import ring_size
from sentinel.models.spec import ModelSpec


class Slots:
    """Room for ``n_slot`` sequences of ``n_position`` tokens.

    Beside several slots there is one more position, ``spare``, where rows write that take no part in a pass.
    """

    def __init__(self, spec: ModelSpec, n_slot: int, n_position: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n_slot, self.n_position, self.spare = n_slot, n_position, n_position
        self.store = KVCache(spec, n_slot, n_position, spare=n_slot > 1, dtype=dtype, device=device)

    def copy(self, slot: int, source: Slots, source_slot: int, reach: int) -> None:
        """Let ``slot`` hold what a slot of ``source`` does, which has held up to ``reach`` tokens.

        There is room for as many here, so that rings are of one size once they have turned.
        """
        mine, theirs = self.store, source.store
        for i, size in enumerate(theirs.sizes):
            n = min(reach, size)
            for target, origin in ((mine.keys[i], theirs.keys[i]), (mine.values[i], theirs.values[i])):
                target[slot, :, :n] = origin[source_slot, :, :n]


class SameLength:
    """The rows ``rows`` of a cache, in which ``past`` positions are taken; ``ends`` are where the texts of a pass end, by
    default where its tokens do."""

    def __init__(self, slots: Slots, rows: Rows, past: int, ends: Sequence[int] | None = None) -> None:
        self._store, self._rows, self._past, self._ends = slots.store, rows, past, ends

    def get_seq_length(self) -> int:
        return self._past

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """`KVCache.put` of ``key`` and ``value`` [rows, heads, T, D]."""
        return self._store.put(key, value, layer_idx, self._rows, self._past, self._ends)

    def shown(self, window: int, past: int, new: int) -> Tensor | None:
        """`KVCache.shown`."""
        return self._store.shown(window, past, new)


class OwnLength:
    """Rows ``rows`` of a cache, into which one token each is written at ``places`` [rows], and of which the first ``total``
    positions are seen; in a ring, those that it holds."""

    def __init__(self, slots: Slots, rows: slice, total: int, places: Tensor) -> None:
        self.store, self.places = slots.store, places
        self._rows, self._total, self._spare = rows, total, slots.spare

    def get_seq_length(self) -> int:
        return self._total - 1

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write ``key`` and ``value`` [rows, heads, 1, D]; returns the positions [rows, heads, total or fewer, D]."""
        heads, size = key.shape[1], self.store.sizes[layer_idx]
        keys, values = self.store.keys[layer_idx][self._rows, :heads], self.store.values[layer_idx][self._rows, :heads]
        places = self.places
        if size < self.store.max_len:
            places = torch.where(places == self._spare, size, places % size)
        index = places[:, None, None, None].expand_as(key)
        keys.scatter_(2, index, key)
        values.scatter_(2, index, value)
        seen = min(self._total, size)
        return keys[:, :, :seen], values[:, :, :seen]

    def shown(self, window: int, past: int, new: int) -> Tensor | None:
        """Positions [rows, 1, 1, S] of what `update` returns in layers of that window, once the ring may have turned."""
        size = ring_size(window, self.store.max_len)
        return newest_positions(self.places[:, None, None, None], size) if size < self._total else None


def places_of(
    slots: Sequence[int], lengths: Sequence[int], first: int, n_row: int, spare: int
) -> tuple[list[int], ...]:
    """Per row from slot ``first`` on: the position that is written, and the position that the token has (0 for a row that
    takes no part)."""
    writes, positions = [spare] * n_row, [0] * n_row
    for slot, length in zip(slots, lengths, strict=True):
        writes[slot - first] = positions[slot - first] = length
    return writes, positions
