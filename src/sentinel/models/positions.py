"""Where tokens stand and what they may look at: rotary angles, position ids, attention masks.

Shape letters: B batch, T new tokens, S cached and new positions, D head_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sentinel.errors import InputError
from sentinel.models.spec import RopeSpec


def rotary_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """Inverse frequencies [head_dim / 2] in fp32, on the CPU: theta^(-2i / head_dim), scaled as the checkpoint asks.

    Source: Su et al. 2021, "RoFormer"; the ``llama3`` scaling is that of Llama 3.1: wavelengths longer than the
    original context over ``low_freq_factor`` are divided by ``factor``, those shorter than it over
    ``high_freq_factor`` are kept, and those between are blended.
    """
    inverse = rope.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim)
    if rope.type == "linear":
        return inverse / rope.factor
    if rope.type == "llama3":
        turns = rope.original_max_seq_len * inverse / (2 * math.pi)
        blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = blend.clamp(0.0, 1.0)
        return blend * inverse + (1 - blend) * inverse / rope.factor
    return inverse


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of ``x`` [B, heads, T, D] by angles with ``cos``/``sin`` [B, 1, T, D/2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def visible(new: int, total: int, device: torch.device) -> Tensor:
    """Causal mask [new, total], True where a new position may look: at itself and all before it."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(diagonal=total - new)


def positions_and_mask(
    tokens: Tensor,
    total: int,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    packed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Positions [B or 1, T] of new ``tokens`` [B, T, ...] up to ``total``, and the mask [B, 1, T, S]; None is causal.

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
        return positions, mask
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != new:
        raise InputError(f"position_ids have shape {tuple(position_ids.shape)}, expected {(batch, new)}")
    step = position_ids.diff()
    if packed and attention_mask is None and (torch.compiler.is_compiling() or bool((step != 1).any())):
        sequence = functional.pad(step != 1, (1, 0)).cumsum(-1)  # [B or 1, T]
        mask = (visible(new, total, tokens.device) & (sequence[:, :, None] == sequence[:, None, :]))[:, None]
    return position_ids, mask


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
