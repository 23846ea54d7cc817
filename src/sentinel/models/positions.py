"""Where tokens stand and what they may look at: rotary angles, position ids, attention masks.

Shape letters: B batch, T new tokens, S cached and new positions, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sentinel.errors import InputError
from sentinel.models.rotary import frequencies
from sentinel.models.spec import ModelSpec, RopeSpec

# Cosines and sines [B, 1, T, dim / 2] by rotary settings and head_dim.
Rotary = dict[tuple[RopeSpec, int], tuple[Tensor, Tensor]]


def rotary_of(spec: ModelSpec, positions: Tensor, total: int, dtype: torch.dtype) -> Rotary:
    """Cosines and sines for ``positions`` [B, T] of texts of ``total`` tokens; empty without rotary positions."""
    tables: Rotary = {}
    for rope, dim in {(layer.attention.rope, layer.head_dim) for layer in spec.layers}:
        if rope is not None:
            inverse = torch.from_numpy(frequencies(rope, dim, total if rope.type == "longrope" else 0).copy())
            angles = positions[:, None, :, None].float() * inverse.to(positions.device)
            factor = rope.attention_factor
            cos, sin = angles.cos(), angles.sin()
            tables[rope, dim] = (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)
    return {key: (cos.to(dtype), sin.to(dtype)) for key, (cos, sin) in tables.items()}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + N/2) of the first N numbers of ``x`` [B, heads, T, D] by angles with ``cos``/``sin``
    [B, 1, T, N/2]."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned if rest.shape[-1] == 0 else (*turned, rest), dim=-1)


def visible(new: int, total: int, device: torch.device) -> Tensor:
    """Causal mask [new, total], True where a new position may look: at itself and all before it."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(diagonal=total - new)


class Masks:
    """Which positions the layers may look at: one mask for all, and for a layer with a window what is left of it.

    ``mask`` [B, 1, T, S] is True where a position may look, or a number that is added; None is causal. The ``new``
    positions T are the last of ``total`` S, unless ``distance`` [T, S] says how far back each of S is from each of T.
    """

    def __init__(
        self, mask: Tensor | None, new: int, total: int, device: torch.device, distance: Tensor | None = None
    ) -> None:
        self.mask, self._new, self.total, self._device = mask, new, total, device
        self._distance = distance
        self._windowed: dict[int, Tensor | None] = {}

    def of(self, window: int | None) -> Tensor | None:
        """The mask of a layer with that window."""
        if window is None:
            return self.mask
        if window not in self._windowed:
            self._windowed[window] = self._within(window)
        return self._windowed[window]

    def _within(self, window: int) -> Tensor | None:
        if not torch.compiler.is_compiling() and self.total <= window:
            return self.mask
        distance = self._back()
        near = distance < window
        if self.mask is None:
            return (near & (distance >= 0))[None, None]
        return self.mask & near if self.mask.dtype == torch.bool else self.mask.masked_fill(~near, -torch.inf)

    def _back(self) -> Tensor:
        """How far back position s is seen from new position t, [T, S]."""
        if self._distance is None:
            places = torch.arange(self.total, device=self._device)
            self._distance = places[self.total - self._new :, None] - places
        return self._distance


def positions_and_mask(
    tokens: Tensor,
    total: int,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    packed: bool = False,
) -> tuple[Tensor, Masks]:
    """Positions [B or 1, T] of new ``tokens`` [B, T, ...] up to ``total``, and which of them each layer may look at.

    ``attention_mask`` [B, S] is 0 where there is padding: positions then count from the first real token, unless
    ``position_ids`` [B or 1, T] give them. One of four dimensions [B or 1, 1, T, S or more] is the mask itself: True
    where a position may look, or a number that is added. With ``packed``, position ids that start again begin another
    sequence, which does not see those before it. Raises `InputError` for other shapes.
    """
    batch, new = tokens.shape[:2]
    positions = torch.arange(total - new, total, device=tokens.device)[None]
    mask = None
    if attention_mask is not None and attention_mask.dim() == 4:
        mask = _mask_of_four(attention_mask, tokens, total)
    elif attention_mask is not None:
        if attention_mask.shape != (batch, total):
            raise InputError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {(batch, total)}")
        keep = attention_mask.to(torch.bool)
        if torch.compiler.is_compiling() or not bool(keep.all()):  # a traced graph must hold for every mask
            positions = (keep.long().cumsum(-1) - 1).clamp(min=0)[:, total - new :]
            causal = visible(new, total, tokens.device)
            # Padding looks at itself: its state is never read, but a row without anything to look at gives NaN.
            itself = causal & ~causal.tril(total - new - 1)
            mask = ((causal & keep[:, None, :]) | itself)[:, None]
    if position_ids is None:
        return positions, Masks(mask, new, total, tokens.device)
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != new:
        raise InputError(f"position_ids have shape {tuple(position_ids.shape)}, expected {(batch, new)}")
    step = position_ids.diff()
    if packed and attention_mask is None and (torch.compiler.is_compiling() or bool((step != 1).any())):
        sequence = functional.pad(step != 1, (1, 0)).cumsum(-1)  # [B or 1, T]
        mask = (visible(new, total, tokens.device) & (sequence[:, :, None] == sequence[:, None, :]))[:, None]
    return position_ids, Masks(mask, new, total, tokens.device)


def require_below(position_ids: Tensor, context: int) -> None:
    """Raise `InputError` for position ids that a table of ``context`` positions does not have; unseen while traced."""
    if torch.compiler.is_compiling():
        return
    first, last = int(position_ids.min()), int(position_ids.max())
    if first < 0 or last >= context:
        raise InputError(f"position_ids are {first} to {last}, but the model has positions 0 to {context - 1}")


def _mask_of_four(mask: Tensor, tokens: Tensor, total: int) -> Tensor:
    batch, new = tokens.shape[:2]
    fits = mask.shape[0] in (1, batch) and mask.shape[1] == 1 and mask.shape[2] == new and mask.shape[3] >= total
    if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise InputError(
            f"attention_mask of four dimensions has shape {tuple(mask.shape)} and type {mask.dtype}, "
            f"expected {(batch, 1, new, total)} of bool or float"
        )
    return mask[..., :total]
