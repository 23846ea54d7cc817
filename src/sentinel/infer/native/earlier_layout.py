"""Packed matrices of files of format 1 in today's order of bytes: there, two columns were neighbours, not four."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels.layout import GROUP, INT4_GROUP_BYTES, INT4_NIBBLE_BYTES, ROWS


def repack(data: NDArray[np.uint8], kind: str) -> None:
    """Put the bytes of a matrix of that precision into today's order, in place."""
    if kind == "int8":
        _repack_int8(data)
    elif kind == "int4":
        _repack_int4(data)


def _repack_int8(data: NDArray[np.uint8]) -> None:
    """[K / 2][32 rows][2 columns] becomes [K / 4][32 rows][4 columns]."""
    pairs = data.view("<u2").reshape(-1, 2, ROWS)
    data.view("<u2").reshape(-1, ROWS, 2)[:] = pairs.transpose(0, 2, 1).copy()


def _repack_int4(data: NDArray[np.uint8]) -> None:
    """A group was [4 eights of columns][32 rows][2] words of 16 bits, nibble j of a word holding the column 2 j further on;
    then all steps, and all lows."""
    groups = data.reshape(-1, INT4_GROUP_BYTES)
    n_nibble, n_half = ROWS * GROUP // 2, ROWS // 2 * 2
    words = groups[:, :n_nibble].copy().view("<u4").reshape(-1, 4, 2, ROWS // 2)
    bytes_ = np.zeros_like(words)
    for column in range(8):
        word, nibble = column % 2, column // 2
        bytes_ |= (words >> np.uint32(16 * word + 4 * nibble) & np.uint32(15)) << np.uint32(
            column % 4 * 8 + column // 4 * 4
        )
    rest = groups[:, n_nibble:].reshape(-1, 2, 2, n_half).transpose(0, 2, 1, 3)  # of each half, steps and lows
    halves = np.concatenate(
        (
            np.ascontiguousarray(bytes_.transpose(0, 2, 1, 3)).view(np.uint8).reshape(-1, 2, INT4_NIBBLE_BYTES),
            rest.reshape(-1, 2, 2 * n_half),
        ),
        axis=2,
    )
    groups[:] = halves.reshape(groups.shape)
