"""Blocks of 32 rows, as kernels read them: vectors and matrices are padded with zeros to whole ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels.layout import GROUP, ROWS


def padded(n: int, multiple: int = ROWS) -> int:
    """``n`` rounded up to a multiple."""
    return -(-n // multiple) * multiple


def padded_matrix(weight: NDArray, dtype: type) -> NDArray:
    """``weight`` [N, K] with both sizes rounded up to multiples of 32."""
    out = np.zeros((padded(weight.shape[0], ROWS), padded(weight.shape[1], GROUP)), dtype)
    out[: weight.shape[0], : weight.shape[1]] = weight
    return out
