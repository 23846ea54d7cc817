"""Level 2 on accelerators: every decode step the same graph, compiled, over a KV cache whose tensors never move.

``torch.compile`` with ``mode="reduce-overhead"`` records the step as a CUDA graph, so that a token costs one launch. For
that the step may not depend on the length so far: it writes at a position that is a tensor, and attends to the whole
cache under a mask. Prefill runs eagerly, into the same cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.infer.engine import Logits
from sentinel.infer.torch.eager import TorchEngine
from sentinel.models.decoder import Decoder
from sentinel.models.kv_cache import KVCache
from sentinel.models.positions import Masks, Rotary


class StaticTorchEngine(TorchEngine):
    """Runs a `Decoder` with a static decode step, compiled wherever the decoder is not on the CPU."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder, 2)
        self._plain = decoder
        self._view: _WholeCache | None = None
        self._keep: Tensor | None = None
        self._padding: Tensor | None = None
        self._rotary: Rotary = {}
        self._compiled: Callable[[Tensor, Tensor], Tensor] = self._step
        if decoder.device.type != "cpu":
            self._compiled = torch.compile(self._step, mode="reduce-overhead", fullgraph=True)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Logits:
        """Logits [B, V] after each prompt; room for ``max_new_tokens`` more is allocated."""
        logits = super().prefill(prompts, max_new_tokens)
        cache, mask = self._cache, self._mask
        assert cache is not None
        if self._view is None or self._view.cache is not cache:
            self._view = _WholeCache(cache)
            self._keep = torch.ones(cache.batch, cache.max_len, dtype=torch.bool, device=self._plain.device)
            self._padding = torch.zeros(cache.batch, 1, dtype=torch.long, device=self._plain.device)
            self._rotary = self._plain.rotary(torch.arange(cache.max_len, device=self._plain.device)[None])
        assert self._keep is not None and self._padding is not None
        self._keep.fill_(True)
        self._padding.zero_()
        if mask is not None:
            self._keep[:, : mask.shape[1]] = mask
            self._padding.copy_((~mask).sum(1, keepdim=True))
        return logits

    @torch.inference_mode()
    def decode_one_token(self, tokens: Sequence[int]) -> Logits:
        """Logits [B, V] after one more token per sequence."""
        cache = self._cache
        if cache is None:
            raise InputError("decode_one_token needs a prefill first")
        past, device = cache.get_seq_length(), self._plain.device
        if past >= cache.max_len:
            raise InputError(f"the KV cache holds {cache.max_len} positions, and they are used up")
        position = torch.tensor([past], device=device)
        logits = self._compiled(torch.tensor(tokens, device=device)[:, None], position)
        cache.lengths = [past + 1] * len(cache.lengths)
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        return np.asarray(logits[:, -1].float().cpu().numpy())

    def _step(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Logits [B, 1, V] of one token per sequence [B, 1] at ``position`` [1] of the cache."""
        assert self._view is not None and self._keep is not None and self._padding is not None
        self._view.position = position
        places = position - self._padding  # [B, 1], counted from each sequence's first token
        distance = position - torch.arange(self._keep.shape[1], device=position.device)
        seen = (self._keep & (distance >= 0))[:, None, None]
        masks = Masks(seen, 1, self._keep.shape[1], position.device, distance[None])
        rotary = {
            key: (cos[0, 0][places][:, None], sin[0, 0][places][:, None]) for key, (cos, sin) in self._rotary.items()
        }
        return self._plain.logits(self._plain.through_layers(tokens, places, rotary, self._view, masks))


class _WholeCache:
    """A `KVCache` into which one token is written at ``position`` [1], and of which all positions are seen."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.position: Tensor | None = None
        for tensor in (*cache.keys, *cache.values):
            if tensor.device.type != "cpu":
                torch._dynamo.mark_static_address(tensor)  # written in place: a CUDA graph must know where

    def get_seq_length(self) -> int:
        return self.cache.get_seq_length()

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write ``key`` and ``value`` [B, heads, 1, D]; returns all positions [B, heads, max_len, D]."""
        assert self.position is not None
        heads = key.shape[1]
        keys, values = self.cache.keys[layer_idx][:, :heads], self.cache.values[layer_idx][:, :heads]
        keys.index_copy_(2, self.position, key)
        values.index_copy_(2, self.position, value)
        return keys, values
