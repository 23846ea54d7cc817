"""How the weights of a matrix are stored: a file per precision, and the table of them.

A matrix has N rows (outputs) and K columns (inputs); packed it has ceil(N / 32) blocks of 32 rows, and K rounded up to a
multiple of 32, the added weights being zero. What a precision's kernels do (its tile, its input, its rows of the embedding)
is in ``kernels/precision_*.py``, since Numba compiles it; running a packed file imports only what is here.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..blocks import padded
from ..kernels.layout import ROWS
from ..kernels.names import Kind
from . import fp32, int4, int8

Precision = Literal["fp32", "int8", "int4"]
Floats = NDArray[np.float32]


class Storage(Protocol):
    """What the file of a precision has."""

    @property
    def KIND(self) -> Kind:
        """Its number in the tables of the compiled step."""
        ...

    @property
    def ENDS(self) -> str:
        """The precision of embeddings, LM head and fusions beside it."""
        ...

    @property
    def INPUT_BYTES(self) -> int:
        """Bytes of a value that is multiplied with it."""
        ...

    @property
    def CALIBRATED(self) -> bool:
        """True when quantising loses less with the Gram matrix of the inputs."""
        ...

    @property
    def SCALED(self) -> bool:
        """True when there is a scale per row."""
        ...

    def block_bytes(self, n_column: int) -> int:
        """Bytes of one block of 32 rows and ``n_column`` columns (before padding)."""
        ...

    def quantise(self, weight: Floats, gram: NDArray | None = None) -> tuple[tuple[NDArray, ...], Floats | None]:
        """What is stored of ``weight`` [N, K], and the scales [N]; ``gram`` [K, K] is the sum of x x^T over inputs x."""
        ...

    def pack(self, stored: tuple[NDArray, ...]) -> NDArray[np.uint8]:
        """Its bytes, block after block."""
        ...

    def unpack(self, data: NDArray[np.uint8], n_row: int, n_column: int) -> tuple[NDArray, ...]:
        """Inverse of `pack`."""
        ...

    def dequantise(self, stored: tuple[NDArray, ...], scale: Floats | None) -> Floats:
        """The weights [N, K] that it stands for."""
        ...


PRECISIONS: dict[str, Storage] = {"fp32": fp32, "int8": int8, "int4": int4}


def packed_bytes(precision: str, n_row: int, n_column: int) -> int:
    """Bytes of a packed matrix."""
    return padded(n_row, ROWS) // ROWS * PRECISIONS[precision].block_bytes(n_column)
