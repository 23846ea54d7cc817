"""Rotary frequencies, the same for every engine. NumPy only, in float64, rounded once."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from sentinel.models.spec import ModelSpec, RopeSpec

Frequencies = NDArray[np.float32]


@functools.lru_cache(maxsize=64)
def frequencies(rope: RopeSpec, head_dim: int, length: int = 0) -> Frequencies:
    """Angle per position [dim / 2] of each pair of numbers: theta^(-2i / dim), scaled as the checkpoint asks.

    ``length`` is that of the text so far, which longrope asks for: a prompt has the frequencies of its own length, and
    every further token those of the length with it (as in Hugging Face; cached keys stay as they are). Source: Su et al.
    2021, "RoFormer". ``llama3`` (Llama 3.1): wavelengths longer than the original context over ``low_freq_factor`` are
    divided by ``factor``, those shorter than it over ``high_freq_factor`` are kept, and those between are blended. ``yarn``
    (Peng et al. 2023): likewise between the pairs that turn ``beta_slow`` and ``beta_fast`` times within the original
    context.
    """
    dim = rope.dim_of(head_dim)
    plain = rope.theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if rope.type == "linear":
        plain = plain / rope.factor
    elif rope.type == "llama3":
        turns = rope.original_max_seq_len * plain / (2 * math.pi)
        blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = np.minimum(np.maximum(blend, 0.0), 1.0)
        plain = blend * plain + (1 - blend) * plain / rope.factor
    elif rope.type == "yarn":
        keep = 1 - _yarn_ramp(rope, dim)
        plain = keep * plain + (1 - keep) * plain / rope.factor
    elif rope.type == "longrope":
        long = length > rope.original_max_seq_len
        plain = plain / np.array(rope.long_factors if long else rope.short_factors)
    found = plain.astype(np.float32)
    found.flags.writeable = False  # it is shared
    return found


def tables(rope: RopeSpec, head_dim: int, positions: int, length: int) -> tuple[Frequencies, Frequencies]:
    """Cosines and sines [positions, dim / 2] of texts of at most ``length`` tokens."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies(rope, head_dim, length)
    cos, sin = (function(angles.astype(np.float64)) * rope.attention_factor for function in (np.cos, np.sin))
    return cos.astype(np.float32), sin.astype(np.float32)


def turns(spec: ModelSpec) -> list[int]:
    """Lengths beyond which a text has other frequencies (longrope), ascending."""
    ropes = {layer.attention.rope for layer in spec.with_baseline_layers().layers}
    return sorted({rope.original_max_seq_len for rope in ropes if rope is not None and rope.type == "longrope"})


def _yarn_ramp(rope: RopeSpec, dim: int) -> NDArray[np.float64]:
    """0 for pairs that turn ``beta_fast`` times or more within the original context, 1 for ``beta_slow`` or fewer."""

    def pair(turns: float) -> float:
        return dim * math.log(rope.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(dim // 2, dtype=np.float64) - low) / (high - low)
    return np.minimum(np.maximum(ramp, 0.0), 1.0)
