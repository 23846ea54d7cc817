"""Keys and values of several sequences of unequal lengths, one per row of a `KVCache`, and what a pass sees of them.

A `Decoder` writes and reads them through a view that is its cache for one pass: `SameLength` of rows that are equally long,
without any mask, `OwnLength` of any rows, under one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sentinel.models.kv_cache import KVCache
from sentinel.models.spec import ModelSpec


class Slots:
    """Room for ``n_slot`` sequences of ``n_position`` tokens.

    Beside several slots there is one more position, ``spare``, where rows write that take no part in a pass.
    """

    def __init__(self, spec: ModelSpec, n_slot: int, n_position: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n_slot, self.n_position, self.spare = n_slot, n_position, n_position
        self.store = KVCache(spec, n_slot, n_position + (n_slot > 1), dtype=dtype, device=device)

    def copy(self, slot: int, source: Slots, source_slot: int, length: int) -> None:
        """Let ``slot`` hold the first ``length`` tokens of a slot of ``source``."""
        mine, theirs = self.store, source.store
        for target, origin in zip((*mine.keys, *mine.values), (*theirs.keys, *theirs.values), strict=True):
            target[slot, :, :length] = origin[source_slot, :, :length]


class SameLength:
    """The rows ``rows`` of a cache, in which ``past`` positions are taken."""

    def __init__(self, slots: Slots, rows: slice | Tensor, past: int) -> None:
        self._store, self._rows, self._past = slots.store, rows, past

    def get_seq_length(self) -> int:
        return self._past

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write ``key`` and ``value`` [rows, heads, T, D]; returns all positions so far [rows, heads, past + T, D]."""
        heads, end = key.shape[1], self._past + key.shape[2]
        keys, values = self._store.keys[layer_idx], self._store.values[layer_idx]
        keys[self._rows, :heads, self._past : end] = key
        values[self._rows, :heads, self._past : end] = value
        if self._past == 0:
            return key, value
        assert isinstance(self._rows, slice)
        return keys[self._rows, :heads, :end], values[self._rows, :heads, :end]


class OwnLength:
    """Rows ``rows`` of a cache, into which one token each is written at ``places`` [rows], and of which the first ``total``
    positions are seen."""

    def __init__(self, slots: Slots, rows: slice, total: int, places: Tensor) -> None:
        self.store, self.places = slots.store, places
        self._rows, self._total = rows, total

    def get_seq_length(self) -> int:
        return self._total - 1

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write ``key`` and ``value`` [rows, heads, 1, D]; returns the positions [rows, heads, total, D]."""
        heads = key.shape[1]
        keys, values = self.store.keys[layer_idx][self._rows, :heads], self.store.values[layer_idx][self._rows, :heads]
        index = self.places[:, None, None, None].expand_as(key)
        keys.scatter_(2, index, key)
        values.scatter_(2, index, value)
        return keys[:, :, : self._total], values[:, :, : self._total]


def places_of(
    slots: Sequence[int], lengths: Sequence[int], first: int, n_row: int, spare: int
) -> tuple[list[int], ...]:
    """Per row from slot ``first`` on: the position that is written, and the position that the token has (0 for a row that
    takes no part)."""
    writes, positions = [spare] * n_row, [0] * n_row
    for slot, length in zip(slots, lengths, strict=True):
        writes[slot - first] = positions[slot - first] = length
    return writes, positions
