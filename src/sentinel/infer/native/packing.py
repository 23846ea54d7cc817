"""Matrices in blocks of 32 rows, as `tiles` reads them, and back.

Shapes: a matrix has N rows (outputs) and K columns (inputs); packed it has ceil(N / 32) blocks and K rounded up to a
multiple of 32, the added weights being zero. In a block:

- float32: [K][32 rows]
- int8: [K / 2][32 rows][2 columns]
- int4: [K / 32] groups of 512 bytes of nibbles, 32 half-precision steps and 32 half-precision lows; a weight is
  (nibble * step + low) * the row's scale. 64 bytes of nibbles are 16 rows x 2 columns of 16-bit words; nibble j of a
  word holds the column 2 j further on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels.layout import GROUP, INT4_GROUP_BYTES, ROWS

KINDS = ("fp32", "int8", "int4")


def padded(n: int, multiple: int = 32) -> int:
    """``n`` rounded up to a multiple."""
    return -(-n // multiple) * multiple


def block_bytes(kind: str, n_column: int) -> int:
    """Bytes of one block of 32 rows and ``n_column`` columns (before padding)."""
    columns = padded(n_column, GROUP)
    return {"fp32": 4 * ROWS * columns, "int8": ROWS * columns, "int4": columns // GROUP * INT4_GROUP_BYTES}[kind]


def packed_bytes(kind: str, n_row: int, n_column: int) -> int:
    """Bytes of a packed matrix."""
    return padded(n_row, ROWS) // ROWS * block_bytes(kind, n_column)


def _padded_matrix(weight: NDArray, dtype: type) -> NDArray:
    out = np.zeros((padded(weight.shape[0], ROWS), padded(weight.shape[1], GROUP)), dtype)
    out[: weight.shape[0], : weight.shape[1]] = weight
    return out


def pack_fp32(weight: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bytes of float32 [N, K]."""
    full = _padded_matrix(weight, np.float32)
    blocks = full.reshape(-1, ROWS, full.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)


def pack_int8(quantised: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Bytes of int8 [N, K]."""
    full = _padded_matrix(quantised, np.int8)
    blocks = full.reshape(-1, ROWS, full.shape[1] // 2, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)


def pack_int4(quantised: NDArray[np.uint8], step: NDArray[np.float16], low: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Bytes of int4 [N, K] (values 0..15) with ``step`` and ``low`` [N, K / 32] (per row and group)."""
    full = _padded_matrix(quantised, np.uint16)
    n_block, n_group = full.shape[0] // ROWS, full.shape[1] // GROUP
    #                       block, half, row, group, quarter, j, parity
    parts = full.reshape(n_block, 2, 16, n_group, 4, 4, 2)
    words = parts[..., 0, :] | parts[..., 1, :] << 4 | parts[..., 2, :] << 8 | parts[..., 3, :] << 12
    words = words.transpose(0, 3, 4, 1, 2, 5).reshape(n_block, n_group, -1)  # block, group, quarter, half, row, parity
    pieces = [words.astype("<u2").view(np.uint8)]
    for halves in (step, low):
        by_group = _padded_matrix(halves, np.float16)[:, :n_group].reshape(n_block, ROWS, n_group).transpose(0, 2, 1)
        pieces.append(np.ascontiguousarray(by_group).view(np.uint8))
    out = np.concatenate(pieces, axis=2)
    assert out.shape[2] == INT4_GROUP_BYTES
    return out.reshape(-1)


def unpack_fp32(data: NDArray[np.uint8], n_row: int, n_column: int) -> NDArray[np.float32]:
    """Inverse of `pack_fp32`."""
    blocks = data.view(np.float32).reshape(-1, padded(n_column, GROUP), ROWS).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks.reshape(-1, blocks.shape[2])[:n_row, :n_column])


def unpack_int8(data: NDArray[np.uint8], n_row: int, n_column: int) -> NDArray[np.int8]:
    """Inverse of `pack_int8`."""
    blocks = data.view(np.int8).reshape(-1, padded(n_column, GROUP) // 2, ROWS, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks.reshape(-1, padded(n_column, GROUP))[:n_row, :n_column])


def unpack_int4(
    data: NDArray[np.uint8], n_row: int, n_column: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Inverse of `pack_int4`: values [N, K], steps and lows [N, ceil(K / 32)]."""
    n_group = padded(n_column, GROUP) // GROUP
    groups = data.reshape(-1, n_group, INT4_GROUP_BYTES)
    words = groups[..., :512].copy().view("<u2").reshape(-1, n_group, 4, 2, 16, 2)
    parts = np.stack([words >> 4 * j & 15 for j in range(4)], axis=5)  # block, group, quarter, half, row, j, parity
    values = parts.transpose(0, 3, 4, 1, 2, 5, 6).reshape(-1, n_group * GROUP).astype(np.uint8)
    step, low = (
        np.ascontiguousarray(groups[..., start : start + 64]).view(np.float16).transpose(0, 2, 1).reshape(-1, n_group)
        for start in (512, 576)
    )
    return values[:n_row, :n_column].copy(), step[:n_row].copy(), low[:n_row].copy()
