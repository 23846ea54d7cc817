"""Where tokens stand and what they may look at: rotary angles, attention masks.

Shape letters: B batch, T new tokens, S cached and new positions, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.rotary import frequencies
from sentinel.models.spec import ModelSpec, RopeSpec

# Cosines and sines [B, 1, T, dim / 2] by rotary settings and head_dim.
Rotary = dict[tuple[RopeSpec, int], tuple[Tensor, Tensor]]

# Which positions [S] or [B, 1, 1, S] a cache returns in layers of a window, with so many before so many new ones; negative
# where there is none. None: all of them, in order.
Shown = Callable[[int, int, int], Tensor | None]


def rotary_of(spec: ModelSpec, positions: Tensor, total: int, dtype: torch.dtype) -> Rotary:
    """Cosines and sines for ``positions`` [B, T] of texts of ``total`` tokens; empty without rotary positions."""
    tables: Rotary = {}
    for rope, dim in {(layer.attention.rope, layer.head_dim) for layer in spec.layers}:
        if rope is not None:
            inverse = _inverse(rope, dim, total if rope.type == "longrope" else 0)
            angles = positions[:, None, :, None].float() * inverse.to(positions.device)
            factor = rope.attention_factor
            cos, sin = angles.cos(), angles.sin()
            tables[rope, dim] = (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)
    return {key: (cos.to(dtype), sin.to(dtype)) for key, (cos, sin) in tables.items()}


@torch.compiler.assume_constant_result  # pyright: ignore[reportUnknownMemberType]
def _inverse(rope: RopeSpec, dim: int, total: int) -> Tensor:
    return torch.as_tensor(np.array(frequencies(rope, dim, total)), device="cpu")


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
    positions T are the last of ``total`` S, or ``places`` [B] says where the only new one of every row is. Of layers with
    a window a cache may return some positions only: those that ``shown`` tells.
    """

    def __init__(
        self,
        mask: Tensor | None,
        new: int,
        total: int,
        device: torch.device,
        *,
        places: Tensor | None = None,
        shown: Shown | None = None,
    ) -> None:
        self.total, self._new, self._device = total, new, device
        self._given, self._places, self._shown = mask, places, shown
        self._windowed: dict[int | None, Tensor | None] = {}

    def of(self, window: int | None, layer: int = 0) -> Tensor | None:
        """The mask of a layer with that window. Its place in the cache, ``layer``, is of no matter here."""
        if window not in self._windowed:
            if window is None or (not torch.compiler.is_compiling() and self.total <= window):
                self._windowed[window] = self._whole()
            else:
                self._windowed[window] = self._within(window)
        return self._windowed[window]

    def _whole(self) -> Tensor | None:
        if self._places is None:
            return self._given
        return self._queries() >= torch.arange(self.total, device=self._device)

    def _within(self, window: int) -> Tensor | None:
        keys = None if self._shown is None else self._shown(window, self.total - self._new, self._new)
        given = self._given
        if keys is None:
            keys = torch.arange(self.total, device=self._device)
        elif given is not None:
            given = given.index_select(-1, keys.clamp(min=0))
        distance = self._queries() - keys  # [T, S] or [B, 1, 1, S]
        near = distance < window
        if given is not None:
            return given & near if given.dtype == torch.bool else given.masked_fill(~near, -torch.inf)
        near = near & (distance >= 0)
        return near[None, None] if self._places is None else near & (keys >= 0)

    def _queries(self) -> Tensor:
        """Positions of the new tokens, [T, 1] or [B, 1, 1, 1]."""
        if self._places is not None:
            return self._places[:, None, None, None]
        return torch.arange(self.total - self._new, self.total, device=self._device)[:, None]


def positions_and_mask(
    tokens: Tensor, total: int, attention_mask: Tensor | None = None, shown: Shown | None = None
) -> tuple[Tensor, Masks]:
    """Positions [B or 1, T] of new ``tokens`` [B, T] up to ``total``, and which of them each layer may look at, whose
    cache returns what is ``shown``.

    ``attention_mask`` [B, S] is 0 where there is padding: positions then count from the first real token. Raises
    `InputError` for other shapes.
    """
    batch, new = tokens.shape[:2]
    positions = torch.arange(total - new, total, device=tokens.device)[None]
    mask = None
    if attention_mask is not None:
        require_one_per_token(attention_mask, batch, total)
        keep = attention_mask.to(torch.bool)
        if torch.compiler.is_compiling() or not bool(keep.all()):  # a traced graph must hold for every mask
            positions = positions_of(keep, new)
            causal = visible(new, total, tokens.device)
            # Padding looks at itself: its state is never read, but a row without anything to look at gives NaN.
            itself = causal & ~causal.tril(total - new - 1)
            mask = ((causal & keep[:, None, :]) | itself)[:, None]
    return positions, Masks(mask, new, total, tokens.device, shown=shown)


def positions_of(keep: Tensor, new: int) -> Tensor:
    """Positions [B, T] of the last ``new`` tokens, counted from the first that ``keep`` [B, S] does not call padding."""
    return (keep.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]


def require_one_per_token(mask: Tensor, batch: int, total: int) -> None:
    """Raise `InputError` unless ``mask`` is [batch, total]."""
    if mask.shape != (batch, total):
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}, expected {(batch, total)}")
