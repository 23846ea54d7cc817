"""Pre-allocated key/value cache, one pair of tensors per layer, so that layers can hold unequal numbers of heads.

A layer with an attention window keeps its newest positions only, in a ring: `AttentionSpec.cached` says how many, and
position p is in place p modulo that number. Shape letters: B rows, G key/value heads, T new tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.layer_spec import AttentionSpec, ring_size
from sentinel.models.spec import ModelSpec

Rows = slice | Tensor


class KVCache:
    """Keys and values of every layer: [batch, n_kv_head, sizes[layer], head_dim] each, allocated once.

    ``update`` has the signature of Hugging Face's ``Cache.update``, so that a `Decoder` takes either. With ``spare`` there
    is one more place in every layer, after all others, that no position has.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batch: int,
        max_len: int,
        *,
        spare: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or max_len < 1:
            raise InputError(f"a KV cache needs batch and max_len of at least 1, not {batch} and {max_len}")
        self.batch = batch
        self.max_len = max_len
        self.lengths = [0] * spec.n_layer
        self._layers = [layer.attention for layer in spec.layers]
        self.sizes = [layer.cached(max_len) for layer in self._layers]
        shapes = [
            (batch, layer.n_kv_head, size + spare, layer.head_dim)
            for layer, size in zip(self._layers, self.sizes, strict=True)
        ]
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
        """Append ``key`` and ``value`` [B, heads, T, D]; returns what the new tokens may look at: see `put`.

        ``heads`` may be fewer than allocated: a width keeps the first heads of the stored order.
        """
        start = self.lengths[layer_idx]
        end = start + key.shape[2]
        if end > self.max_len:
            raise InputError(f"the KV cache holds {self.max_len} positions, but {end} are needed")
        self.lengths[layer_idx] = end
        return self.put(key, value, layer_idx, slice(None), start)

    def put(
        self, key: Tensor, value: Tensor, layer: int, rows: Rows, past: int, ends: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write ``key`` and ``value`` [B, heads, T, D] at positions ``past`` and on of ``rows`` (a slice if ``past`` > 0).

        Returns keys and values [B, heads, S, D] of the positions 0 to past + T - 1, or those that `shown` tells. What
        follows position ``ends[b]`` is padding, and a ring keeps what was before.
        """
        y, size = self._layers[layer], self.sizes[layer]
        return (
            _put(self.keys[layer], key, rows, past, y, size, ends),
            _put(self.values[layer], value, rows, past, y, size, ends),
        )

    def shown(self, window: int, past: int, new: int) -> Tensor | None:
        """Positions [S] of what `put` returns for ``new`` tokens in layers of that window; None for all, in order."""
        return _shown(window, ring_size(window, self.max_len), past, new, self.keys[0].device)

    def reset(self) -> None:
        """Forget all positions; the memory stays allocated."""
        self.lengths = [0] * len(self.lengths)


def _put(
    store: Tensor, new: Tensor, rows: Rows, past: int, layer: AttentionSpec, size: int, ends: Sequence[int] | None
) -> Tensor:
    heads, count = new.shape[1:3]
    end = past + count
    if end <= size:  # always, where there is no window
        store[rows, :heads, past:end] = new
        return new if past == 0 else store[rows, :heads, :end]
    if count == 1:
        store[rows, :heads, past % size] = new[:, :, 0]
        return store[rows, :heads, :size]
    seen = new
    if past > 0:
        assert layer.window is not None
        before = torch.arange(max(0, past - layer.window + 1), past, device=new.device)
        seen = torch.cat((store[rows, :heads].index_select(2, before % size), new), 2)
    last = torch.tensor([end] if ends is None else ends, device=new.device)[:, None] - 1
    newest = newest_positions(last, size) - past  # [B or 1, size]: which of the new tokens each place takes
    kept = newest.expand(len(new), -1)[:, None, :, None].expand(-1, heads, -1, new.shape[3])
    taken = new.gather(2, kept.clamp(min=0))
    store[rows, :heads, :size] = taken if past == 0 else torch.where(kept < 0, store[rows, :heads, :size], taken)
    return seen


def _shown(window: int, size: int, past: int, new: int, device: torch.device) -> Tensor | None:
    if past + new <= size:
        return None
    if new == 1:
        return newest_positions(torch.tensor(past, device=device), size)
    return torch.arange(max(0, past - window + 1), past + new, device=device)


def newest_positions(last: Tensor, size: int) -> Tensor:
    """The position in every place of a ring of ``size`` that has been filled up to position ``last`` [...]: the newest one
    that belongs there, negative where there is none yet. [..., size]."""
    return last - (last - torch.arange(size, device=last.device)) % size
