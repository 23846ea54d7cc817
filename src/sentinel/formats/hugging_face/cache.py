"""Hugging Face's caches as the decoder asks for one."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache


class SharedCache:
    """A view of ``cache`` for one pass of ``new`` tokens; layers without heads and static caches are as any other.

    Hugging Face's layers read their length off their tensors, and a tensor without heads has none: a head of width 1
    stands in for it. Static caches return all that they have room for: what is not filled yet is left out.
    """

    def __init__(self, cache: Cache, new: int) -> None:
        self._cache = cache
        self._past = int(cache.get_seq_length())
        self._total = self._past + new

    def get_seq_length(self) -> int:
        """Positions cached before this pass."""
        return self._past

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append ``key`` and ``value`` [batch, heads, new, head_dim] and return everything cached for the layer."""
        if key.shape[1] == 0:
            filler = key.new_ones(key.shape[0], 1, key.shape[2], 1)  # zeros would count as free places
            self._cache.update(filler, filler, layer_idx)
            return key, value
        keys, values = self._cache.update(key, value, layer_idx)
        return keys[:, :, : self._total], values[:, :, : self._total]
