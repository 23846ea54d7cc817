"""int4 with a step and a low value per row and group of 32 columns, both fractions of the row's scale.

A weight is (nibble * step + low) * scale. A block is [K / 32] groups of 512 bytes of nibbles, 32 half-precision steps and
32 half-precision lows. 64 bytes of nibbles are 16 rows x 2 columns of 16-bit words; nibble j of a word holds the column
2 j further on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import padded, padded_matrix
from ..kernels.layout import GROUP, INT4_GROUP_BYTES, INT4_NIBBLE_BYTES, ROWS
from ..kernels.names import Kind

KIND = Kind.INT4
ENDS = "int8"
INPUT_BYTES = 2
CALIBRATED = True
SCALED = True


def block_bytes(n_column: int) -> int:
    """Bytes of one block of 32 rows and ``n_column`` columns (before padding)."""
    return padded(n_column, GROUP) // GROUP * INT4_GROUP_BYTES


def quantise(
    weight: NDArray[np.float32], gram: NDArray | None = None
) -> tuple[tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]], NDArray[np.float32]]:
    """Values [N, K'] in 0..15, steps and lows [N, K' / 32], and scales [N], for K' = K rounded up to 32.

    ``gram`` [K, K] is the sum of x x^T over inputs x; without it every weight's error counts the same.
    """
    from .int4_rounding import rounded  # compiled by Numba, which a packed file is run without

    return rounded(weight, gram)


def pack(stored: tuple[NDArray, ...]) -> NDArray[np.uint8]:
    """Bytes of int4 [N, K] (values 0..15) with steps and lows [N, ceil(K / 32)] (per row and group)."""
    values, step, low = stored
    full = padded_matrix(values, np.uint16)
    n_block, n_group = full.shape[0] // ROWS, full.shape[1] // GROUP
    #                       block, half, row, group, quarter, j, parity
    parts = full.reshape(n_block, 2, 16, n_group, 4, 4, 2)
    words = parts[..., 0, :] | parts[..., 1, :] << 4 | parts[..., 2, :] << 8 | parts[..., 3, :] << 12
    words = words.transpose(0, 3, 4, 1, 2, 5).reshape(n_block, n_group, -1)  # block, group, quarter, half, row, parity
    pieces = [words.astype("<u2").view(np.uint8)]
    for halves in (step, low):
        by_group = padded_matrix(halves, np.float16)[:, :n_group].reshape(n_block, ROWS, n_group).transpose(0, 2, 1)
        pieces.append(np.ascontiguousarray(by_group).view(np.uint8))
    out = np.concatenate(pieces, axis=2)
    assert out.shape[2] == INT4_GROUP_BYTES
    return out.reshape(-1)


def unpack(
    data: NDArray[np.uint8], n_row: int, n_column: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Inverse of `pack`: values [N, K], steps and lows [N, ceil(K / 32)]."""
    n_group = padded(n_column, GROUP) // GROUP
    groups = data.reshape(-1, n_group, INT4_GROUP_BYTES)
    words = groups[..., :INT4_NIBBLE_BYTES].copy().view("<u2").reshape(-1, n_group, 4, 2, 16, 2)
    parts = np.stack([words >> 4 * j & 15 for j in range(4)], axis=5)  # block, group, quarter, half, row, j, parity
    values = parts.transpose(0, 3, 4, 1, 2, 5, 6).reshape(-1, n_group * GROUP).astype(np.uint8)
    step, low = (
        np.ascontiguousarray(groups[..., start : start + 64]).view(np.float16).transpose(0, 2, 1).reshape(-1, n_group)
        for start in (INT4_NIBBLE_BYTES, INT4_NIBBLE_BYTES + 64)
    )
    return values[:n_row, :n_column].copy(), step[:n_row].copy(), low[:n_row].copy()


def dequantise(stored: tuple[NDArray, ...], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The weights [N, K] that values [N, K], steps and lows [N, ceil(K / 32)] and scales [N] stand for."""
    assert scale is not None
    values, *halves = stored
    step, low = (np.repeat(half.astype(np.float32), GROUP, axis=1)[:, : values.shape[1]] for half in halves)
    return (values * step + low) * scale[:, None]
