"""int8 by the largest weight of a row, with a scale per row: a block is [K / 4][32 rows][4 columns]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import padded, padded_matrix
from ..kernels.layout import GROUP, ROWS
from ..kernels.names import Kind

KIND = Kind.INT8
ENDS = "int8"
INPUT_BYTES = 1
CALIBRATED = False
SCALED = True
_F = np.float32
AT_ONCE = 4096  # rows that are quantised together: an embedding has as many as there are tokens


def block_bytes(n_column: int) -> int:
    """Bytes of one block of 32 rows and ``n_column`` columns (before padding)."""
    return ROWS * padded(n_column, GROUP)


def quantise(
    weight: NDArray[np.float32], gram: NDArray | None = None
) -> tuple[tuple[NDArray[np.int8]], NDArray[np.float32]]:
    """Values [N, K] in -127..127 and scales [N], so that weight ~ value * scale."""
    values, scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    for start in range(0, len(weight), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        peak = np.abs(weight[rows]).max(axis=1, initial=0.0)
        scale[rows] = peak / _F(127)
        inverse = np.divide(_F(127), peak, out=np.zeros_like(peak), where=peak > 0)
        values[rows] = np.rint(weight[rows] * inverse[:, None])
    return (values,), scale


def pack(stored: tuple[NDArray, ...]) -> NDArray[np.uint8]:
    """Bytes of int8 [N, K]."""
    full = padded_matrix(stored[0], np.int8)
    blocks = full.reshape(-1, ROWS, full.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)


def unpack(data: NDArray[np.uint8], n_row: int, n_column: int) -> tuple[NDArray[np.int8]]:
    """Inverse of `pack`."""
    blocks = data.view(np.int8).reshape(-1, padded(n_column, GROUP) // 4, ROWS, 4).transpose(0, 2, 1, 3)
    return (np.ascontiguousarray(blocks.reshape(-1, padded(n_column, GROUP))[:n_row, :n_column]),)


def dequantise(stored: tuple[NDArray, ...], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The weights [N, K] that values [N, K] and scales [N] stand for."""
    assert scale is not None
    return stored[0] * scale[:, None]
