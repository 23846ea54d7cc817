"""float32, as it is: a block is [K][32 rows]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import padded, padded_matrix
from ..kernels.layout import GROUP, ROWS
from ..kernels.names import Kind

KIND = Kind.FP32
ENDS = "fp32"
INPUT_BYTES = 4
CALIBRATED = False
SCALED = False


def block_bytes(n_column: int) -> int:
    """Bytes of one block of 32 rows and ``n_column`` columns (before padding)."""
    return 4 * ROWS * padded(n_column, GROUP)


def quantise(weight: NDArray[np.float32], gram: NDArray | None = None) -> tuple[tuple[NDArray[np.float32]], None]:
    """The weights [N, K] themselves, without scales."""
    return (weight,), None


def pack(stored: tuple[NDArray, ...]) -> NDArray[np.uint8]:
    """Bytes of float32 [N, K]."""
    full = padded_matrix(stored[0], np.float32)
    blocks = full.reshape(-1, ROWS, full.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)


def unpack(data: NDArray[np.uint8], n_row: int, n_column: int) -> tuple[NDArray[np.float32]]:
    """Inverse of `pack`."""
    blocks = data.view(np.float32).reshape(-1, padded(n_column, GROUP), ROWS).transpose(0, 2, 1)
    return (np.ascontiguousarray(blocks.reshape(-1, blocks.shape[2])[:n_row, :n_column]),)


def dequantise(stored: tuple[NDArray, ...], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The weights [N, K]."""
    return stored[0]
