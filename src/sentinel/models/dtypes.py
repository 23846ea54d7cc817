"""Types of numbers that weights are held in, by the names that commands and functions take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from sentinel.errors import InputError
from sentinel.models.rows import Rows

if TYPE_CHECKING:
    from sentinel.models.decoder import Decoder

AUTO = "auto"  # as most of the weights are stored
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_named(name: str) -> torch.dtype | None:
    """The type of that name, None for "auto"; `InputError` names the types for another."""
    if name != AUTO and name not in DTYPES:
        raise InputError(f"dtype {name!r} is not known; it is {', '.join((AUTO, *DTYPES))}")
    return DTYPES.get(name)


def name_of(dtype: torch.dtype) -> str:
    """The name of a type, PyTorch's own where it has none here."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))


def stored_dtype(tensors: Iterable[Rows]) -> torch.dtype:
    """The type that most of the numbers are stored in; fp32 in place of a wider one."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += math.prod(tensor.shape)
    most = max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
    return most if most in DTYPES.values() else torch.float32


def require_fp32(decoder: Decoder, purpose: str) -> None:
    """Raise `InputError` for a decoder in another type; ``purpose`` begins the sentence."""
    if decoder.dtype != torch.float32:
        raise InputError(
            f"{purpose} computes in fp32, and this model is held in {name_of(decoder.dtype)}; load it with dtype fp32, "
            "or convert it (decoder.float())"
        )
