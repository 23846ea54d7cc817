"""Hugging Face's caches as the decoder asks for one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache


class SharedCache:
    """A view of ``cache`` for one pass, in which layers without heads are as any other.

    Hugging Face's layers read their length off their tensors, and a tensor without heads has none: a head of width 1
    stands in for it.
    """

    def __init__(self, cache: Cache, past: int | Tensor) -> None:
        self._cache: Any = cache  # its ``update`` has no types
        self._past = past

    def get_seq_length(self) -> int:
        """Positions cached before this pass."""
        return int(self._past)

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append ``key`` and ``value`` [batch, heads, new, head_dim] and return what the layer's cache shows."""
        if key.shape[1] > 0:
            return self._cache.update(key, value, layer_idx)
        filler = key.new_ones(key.shape[0], 1, key.shape[2], 1)  # zeros would count as free places
        kept, _ = self._cache.update(filler, filler, layer_idx)
        empty = key.new_zeros(key.shape[0], 0, kept.shape[2], key.shape[3])
        return empty, empty
