"""Pre-allocated key/value cache, one pair of tensors per layer, so that layers can hold unequal numbers of heads."""

from __future__ import annotations

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec


class KVCache:
    """Keys and values of every layer: [batch, n_kv_head, max_len, head_dim] each, allocated once.

    ``update`` has the signature of Hugging Face's ``Cache.update``, so that a `Decoder` takes either.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or max_len < 1:
            raise InputError(f"a KV cache needs batch and max_len of at least 1, not {batch} and {max_len}")
        self.batch = batch
        self.max_len = max_len
        self.lengths = [0] * spec.n_layer
        shapes = [(batch, layer.n_kv_head, max_len, layer.head_dim) for layer in spec.layers]
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def get_seq_length(self) -> int:
        """Positions cached so far."""
        return self.lengths[0]

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append ``key`` and ``value`` [batch, heads, new, head_dim] and return everything cached for the layer.

        ``heads`` may be fewer than allocated: a width keeps the first heads of the stored order.
        """
        start = self.lengths[layer_idx]
        end = start + key.shape[2]
        if end > self.max_len:
            raise InputError(f"the KV cache holds {self.max_len} positions, but {end} are needed")
        heads = key.shape[1]
        keys, values = self.keys[layer_idx][:, :heads], self.values[layer_idx][:, :heads]
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        self.lengths[layer_idx] = end
        return keys[:, :, :end], values[:, :, :end]

    def reset(self) -> None:
        """Forget all positions; the memory stays allocated."""
        self.lengths = [0] * len(self.lengths)
