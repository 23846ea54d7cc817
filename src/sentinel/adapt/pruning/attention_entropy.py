"""How spread out the attention of every head is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sentinel.models.decoder import Decoder
from sentinel.models.parts.attention import Attention
from sentinel.models.positions import Masks, visible


class AttentionEntropy:
    """Entropy of each head's attention, over the logarithm of the positions that it may look at, in windows of
    ``length`` tokens."""

    def __init__(self, decoder: Decoder, length: int) -> None:
        self._decoder = decoder
        self._positions = torch.arange(length, device=decoder.device)[None]
        self._rotary = decoder.rotary(self._positions)
        self._masks = Masks(None, length, length, decoder.device)
        self._most = torch.arange(1, length + 1, device=decoder.device).float().log().clamp(min=1e-9)

    @torch.no_grad()
    def of(self, tokens: Tensor) -> dict[int, Tensor]:
        """Means [n_kv_head] over windows ``tokens`` [B, length], by layer, for the layers that have heads."""
        found: dict[int, Tensor] = {}
        x = self._decoder.embedded(tokens.to(self._decoder.device), self._positions)
        for index, block in enumerate(self._decoder.blocks):
            mask = self._masks.of(block.attn.layer.window)
            if block.attn.active_groups:
                entropy = self._entropy(block.attn, block.attn_input(x), mask)
                found[index] = entropy.unflatten(1, (block.attn.active_groups, -1)).mean((0, 2))
            x = block(x, self._rotary, None, index, mask)
        return found

    def _entropy(self, attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
        """Mean relative entropy [B, H] over positions with more than one thing to look at."""
        scores = attention.scores(x, self._rotary)
        length = scores.shape[-1]
        seen = visible(length, length, x.device) if mask is None else mask
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        entropy = -torch.special.xlogy(weights, weights).sum(-1)
        window = attention.layer.window
        most = self._most if window is None else self._most.clamp(max=max(math.log(window), 1e-9))
        return (entropy / most)[..., 1:].mean(-1)
