"""int4 with a step and a low value per row and group of 32 columns, both fractions of the row's scale.

A weight is (nibble * step + low) * scale. A block is [K / 32] groups, each of two halves of 16 rows: 256 bytes of nibbles,
16 half-precision steps and 16 half-precision lows. 64 bytes of nibbles are [16 rows][4 columns], in their low bits, and in
their high bits the next 4 columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import padded, padded_matrix
from ..kernels.layout import GROUP, INT4_GROUP_BYTES, INT4_HALF_BYTES, INT4_NIBBLE_BYTES, ROWS
from ..kernels.names import Kind

KIND = Kind.INT4
ENDS = "int8"
INPUT_BYTES = 1
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
    full = padded_matrix(values, np.uint8)
    n_block, n_group = full.shape[0] // ROWS, full.shape[1] // GROUP
    #                       block, half, row, group, eight, high, column
    parts = full.reshape(n_block, 2, 16, n_group, 4, 2, 4).transpose(0, 3, 1, 4, 2, 5, 6)
    pieces = [(parts[..., 0, :] | parts[..., 1, :] << 4).reshape(n_block, n_group, 2, INT4_NIBBLE_BYTES)]
    for halves in (step, low):
        by_row = padded_matrix(halves, np.float16)[:, :n_group].reshape(n_block, 2, 16, n_group)
        pieces.append(np.ascontiguousarray(by_row.transpose(0, 3, 1, 2)).view(np.uint8))
    out = np.concatenate(pieces, axis=3)
    assert out.shape[3] == INT4_HALF_BYTES
    return out.reshape(-1)


def unpack(
    data: NDArray[np.uint8], n_row: int, n_column: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Inverse of `pack`: values [N, K], steps and lows [N, ceil(K / 32)]."""
    n_group = padded(n_column, GROUP) // GROUP
    halves = data.reshape(-1, n_group, 2, INT4_HALF_BYTES)
    both = halves[..., :INT4_NIBBLE_BYTES].reshape(-1, n_group, 2, 4, 16, 4)
    parts = np.stack([both & 15, both >> 4], axis=5)  # block, group, half, eight, row, high, column
    values = parts.transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, n_group * GROUP)
    step, low = (
        np.ascontiguousarray(halves[..., start : start + 32])
        .view(np.float16)
        .transpose(0, 2, 3, 1)
        .reshape(-1, n_group)
        for start in (INT4_NIBBLE_BYTES, INT4_NIBBLE_BYTES + 32)
    )
    return values[:n_row, :n_column].copy(), step[:n_row].copy(), low[:n_row].copy()


def dequantise(stored: tuple[NDArray, ...], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The weights [N, K] that values [N, K], steps and lows [N, ceil(K / 32)] and scales [N] stand for."""
    assert scale is not None
    values, *halves = stored
    step, low = (np.repeat(half.astype(np.float32), GROUP, axis=1)[:, : values.shape[1]] for half in halves)
    return (values * step + low) * scale[:, None]
