"""What each layer of one pass may look at in Hugging Face's caches, and where its tokens stand.

Shape letters: B batch, T new tokens, S cached and new positions, K positions that a layer's cache returns.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from sentinel.errors import InputError
from sentinel.models.positions import Masks, positions_of, require_one_per_token

# Until transformers 5.2, a cache was asked for its sizes with the new positions, and not with their number.
ASKS_WITH_POSITIONS = "cache_position" in inspect.signature(Cache.get_mask_sizes).parameters
Given = Tensor | dict[str, Tensor | None] | None

TYPES = ("full_attention", "sliding_attention")  # as configs call them


class CacheMasks(Masks):
    """The masks of a pass of ``new`` tokens over ``cache``, whose layers may each return other positions.

    A static cache returns room that is not filled yet, one of a window its last positions only. ``given`` is the
    ``attention_mask`` of the caller: [B, S], 0 where there is padding; of four dimensions [B or 1, 1, T, S or more],
    the mask itself, True where a position may look, or a number that is added; or one of those for each of the config's
    ``layer_types``. ``position_ids`` [B or 1, T] that start again begin another sequence, where there is neither cache nor
    mask: it does not see those before it. Raises `InputError` for other shapes.
    """

    def __init__(
        self, tokens: Tensor, cache: Cache | None, past: int | Tensor, given: Given, position_ids: Tensor | None
    ) -> None:
        batch, new = tokens.shape[:2]
        super().__init__(None, new, past + new, tokens.device)  # pyright: ignore[reportArgumentType]
        self.new, self.past, self._cache = new, past, cache
        # Now, since a static cache counts on in the very tensor ``past``.
        self._standing = torch.arange(new, device=tokens.device) + past
        by_type = dict.fromkeys(TYPES, given) if isinstance(given, Tensor) and given.dim() == 4 else given
        self._by_type = by_type if isinstance(by_type, dict) else {}
        self._keep = None
        if isinstance(given, Tensor) and given.dim() != 4:
            require_one_per_token(given, batch, self.total)
            keep = given.to(torch.bool)
            if torch.compiler.is_compiling() or not bool(keep.all()):  # a traced graph must hold for every mask
                self._keep = keep
        for mask in self._by_type.values():
            if mask is not None:
                _require_four(mask, batch, new)
        self._sequences = _sequences(position_ids) if cache is None and given is None else None
        self._made: dict[tuple[int | None, int, int], Tensor | None] = {}

    def positions(self) -> Tensor:
        """Positions [B or 1, T] of the new tokens, counted from the first that is no padding."""
        if self._keep is not None:
            return positions_of(self._keep, self.new)
        return self._standing[None]

    def of(self, window: int | None, layer: int = 0) -> Tensor | None:
        """The mask [B or 1, 1, T, K] of a layer with that window, which is the cache's ``layer``; None is causal."""
        length, offset = self._sizes(layer)
        # Traced sizes are no keys: they would be taken for constants.
        key = (
            (window, length, offset)
            if not torch.compiler.is_compiling()
            else (window, layer * (self._cache is not None), 0)
        )
        if key not in self._made:
            self._made[key] = self._make(window, length, offset)
        return self._made[key]

    def _make(self, window: int | None, length: int, offset: int) -> Tensor | None:
        keys, queries = offset + torch.arange(length, device=self._device), self._standing
        back = queries[:, None] - keys
        given = self._by_type.get(TYPES[window is not None])
        if given is not None:
            return self._from_given(given, window, offset, back)
        causal = self._keep is None and self._sequences is None
        if (
            causal
            and not self._cuts(window, length)
            and not isinstance(self.past, Tensor)
            and self._is_last(length, offset)
        ):
            return None
        seen = back >= 0
        if window is not None:
            seen = seen & (back < window)
        if self._sequences is not None:
            seen = seen & (self._sequences[:, :, None] == self._sequences[:, None, :])
        if self._keep is not None:
            known = functional.pad(self._keep, (0, max(0, offset + length - self._keep.shape[1])))
            # Padding looks at itself: its state is never read, but a row without anything to look at gives NaN.
            seen = (seen & known[:, None, offset : offset + length]) | (back == 0)
        return seen[:, None] if seen.dim() == 3 else seen[None, None]

    @staticmethod
    def _from_given(mask: Tensor, window: int | None, offset: int, back: Tensor) -> Tensor:
        length = back.shape[1]
        mask = mask[..., -length:] if mask.shape[-1] == length else mask[..., offset : offset + length]
        if mask.shape[-1] < length:
            mask = functional.pad(
                mask, (0, length - mask.shape[-1]), value=0 if mask.dtype == torch.bool else -torch.inf
            )
        if window is None:
            return mask
        near = back < window
        return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, torch.finfo(mask.dtype).min)

    @staticmethod
    def _cuts(window: int | None, length: int) -> bool:
        return window is not None and (torch.compiler.is_compiling() or length > window)

    def _is_last(self, length: int, offset: int) -> bool:
        """Whether the positions that the cache returns end with the new ones, so that causal masks need no telling."""
        return offset + length == self.total

    def _sizes(self, layer: int) -> tuple[int, int]:
        """How many positions the cache will return for the layer, and which is the first."""
        if self._cache is None:
            return self.new, 0
        asked = self._standing if ASKS_WITH_POSITIONS else self.new
        return self._cache.get_mask_sizes(asked, layer)  # pyright: ignore[reportArgumentType]


def _sequences(position_ids: Tensor | None) -> Tensor | None:
    """The number [B or 1, T] of the sequence that each token belongs to; None where there is one."""
    if position_ids is None:
        return None
    begins = position_ids.diff() != 1
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return None
    return functional.pad(begins, (1, 0)).cumsum(-1)


def _require_four(mask: Tensor, batch: int, new: int) -> None:
    fits = mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[1] == 1 and mask.shape[2] == new
    if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise InputError(
            f"attention_mask of four dimensions has shape {tuple(mask.shape)} and type {mask.dtype}, expected "
            f"{(batch, 1, new)} and as many positions as the cache holds, of bool or float"
        )


def require_positions(position_ids: Tensor, batch: int, new: int, context: int | None) -> None:
    """Raise `InputError` unless ``position_ids`` are [B or 1, T], and below ``context`` where a table has as many rows.

    The numbers are unseen while traced.
    """
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != new:
        raise InputError(f"position_ids have shape {tuple(position_ids.shape)}, expected {(batch, new)}")
    if context is None or torch.compiler.is_compiling():
        return
    first, last = int(position_ids.min()), int(position_ids.max())
    if first < 0 or last >= context:
        raise InputError(f"position_ids are {first} to {last}, but the model has positions 0 to {context - 1}")
