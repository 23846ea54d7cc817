"""U-Net skips and baseline integration: late layers that read early ones, and the unpruned model.

With n layers and h = n // 2 pairs, the input of layer n-1-i is fused with the output of layer i (skip, i < h), and the
input of each of the last h layers with that of the same layer of the unpruned model (baseline integration). A fusion
whose output projection is zero is the exact identity.

Shape letters as in the decoder: B batch, T tokens, C width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sentinel.models.parts.attention import Cache
from sentinel.models.parts.linear import Projection
from sentinel.models.parts.norms import make_norm
from sentinel.models.positions import Masks, Rotary
from sentinel.models.spec import IntegrationSpec, ModelSpec

if TYPE_CHECKING:
    from sentinel.models.decoder import Decoder


class Fusion(nn.Module):
    """x + gate * (W [norm(other); norm(x)] + b): one linear map of the concatenated states, with one gate.

    W [C, 2C] is a matrix of its own, or with ``rank`` the product of two: ``up`` [C, rank] and ``down`` [rank, 2C].
    """

    def __init__(self, spec: ModelSpec, rank: int | None) -> None:
        super().__init__()
        width = spec.n_embd
        self.other_norm, self.norm = make_norm(spec), make_norm(spec)
        self.down = None if rank is None else Projection(2 * width, rank, bias=False)
        self.up = Projection(2 * width if rank is None else rank, width)
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """The state ``x`` [B, T, C] with what is borrowed from the state ``other`` [B, T, C]."""
        both = torch.cat((self.other_norm(other), self.norm(x)), dim=-1)
        if self.down is not None:
            both = self.down(both)
        return x + self.gate * self.up(both)


class Integration(nn.Module):
    """The fusions of one model, first that of the layer after the middle."""

    def __init__(self, spec: ModelSpec, integration: IntegrationSpec) -> None:
        super().__init__()
        pairs, rank = spec.n_layer // 2, integration.rank
        self.skips = nn.ModuleList(Fusion(spec, rank) for _ in range(pairs)) if integration.skips else None
        self.adapters = nn.ModuleList(Fusion(spec, rank) for _ in range(pairs)) if integration.baseline else None


class Borrowing:
    """The states that one pass through the layers borrows from; `enter` is called before every layer.

    The baseline goes along layer by layer. Its keys and values follow those of the model in the same cache, so that it
    costs one more model and no recomputation. No gradient flows into it.
    """

    def __init__(
        self, integration: Integration, baseline: Decoder | None, n_layer: int, cache: Cache | None, masks: Masks
    ) -> None:
        self._integration, self._baseline, self._n_layer = integration, baseline, n_layer
        self._cache, self._masks = cache, masks
        self._early: dict[int, Tensor] = {}
        self._state: Tensor | None = None
        self._rotary: Rotary = {}

    def start(self, tokens: Tensor, positions: Tensor, total: int) -> None:
        """Embed the new ``tokens`` [B, T], the last ones of ``total``, for the baseline."""
        if self._baseline is not None:
            with torch.no_grad():
                self._state = self._baseline.embedded(tokens, positions)
                self._rotary = self._baseline.rotary(positions, total)

    def enter(self, index: int, x: Tensor) -> Tensor:
        """What layer ``index`` reads [B, T, C], for the state ``x`` [B, T, C] that the layer before it left."""
        pairs, skips, adapters = self._n_layer // 2, self._integration.skips, self._integration.adapters
        if skips is not None and 0 < index <= pairs:
            self._early[index - 1] = x
        if self._baseline is not None and index > 0:
            with torch.no_grad():
                layer, place = self._baseline.layers[index - 1], self._n_layer + index - 1
                mask = self._masks.of(self._baseline.spec.layers[index - 1].attention.window, place)
                self._state = layer(self._state, self._rotary, self._cache, place, mask)
        late = index - (self._n_layer - pairs)
        if late >= 0 and skips is not None:
            x = skips[late](x, self._early.pop(self._n_layer - 1 - index))
        if late >= 0 and adapters is not None:
            x = adapters[late](x, self._state)
        return x
