"""How fast memory is read by the engine's own threads: the limit of a decode step, measured."""

from __future__ import annotations

import time

import numpy as np

from sentinel.cores import physical_cores

from . import memory
from .kernels import layout
from .kernels.layout import S
from .threads import MAX_THREADS, Team

PIECE = 1 << 20  # about a matrix: every thread reads its share of each


class MemoryReader:
    """Reads memory as a decode step reads weights, and does nothing else: the same threads, each of which takes its share
    of every matrix in the order of memory, huge pages, the same prefetching.

    The area is as large as the largest that was asked for, and is read from its start.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = min(threads or physical_cores(), MAX_THREADS)
        self.state = np.zeros(S.N_FIELD, np.int64)
        self._private = memory.buffer(layout.P_BLOCK * self.threads, huge=False)
        self._sync = memory.buffer(layout.Y_PARKED + 64 * self.threads, huge=False)
        self._area = memory.buffer(0)
        self._pieces = np.zeros((0, 2), np.int64)
        self.state[S.THREADS] = self.threads
        self.state[S.PRIVATE], self.state[S.PRIVATE_STRIDE] = self._private.ctypes.data, layout.P_BLOCK
        self.state[S.SYNC] = self._sync.ctypes.data
        self._team = Team(self, self.threads)

    def reset_threads(self) -> None:
        """Forget how far threads have come."""
        self._private[:] = 0
        self._sync[:] = 0

    def seconds(self, n_byte: int, repeats: int = 1) -> float:
        """Seconds to read the first ``n_byte`` bytes (rounded up to 1 KiB), the mean of ``repeats`` in a row."""
        self._describe(n_byte)
        self.state[S.REPEATS] = repeats
        start = time.perf_counter()
        self._team.run()
        return (time.perf_counter() - start) / repeats

    def sum_read(self) -> int:
        """The sum of the 64-bit integers that the last reading has read: what it must be if all were."""
        values = self._private.view(np.int64).reshape(self.threads, -1)
        return int(values[:, layout.P_READ // 8].sum())

    def close(self) -> None:
        """Stop the worker threads."""
        self._team.close()

    def _describe(self, n_byte: int) -> None:
        """Let the state say what is read; the area grows as needed."""
        n_byte = -(-n_byte // 1024) * 1024
        if n_byte > self._area.nbytes:
            self._area = memory.buffer(n_byte)
            self._area.view(np.int64)[:] = 1  # pages that were never written to are all one page of zeros
        starts = np.arange(0, n_byte, PIECE, dtype=np.int64)
        sizes = np.minimum(PIECE, n_byte - starts)
        self._pieces = np.ascontiguousarray(np.stack((self._area.ctypes.data + starts, sizes), axis=1))
        self.state[S.PIECES], self.state[S.N_PIECE] = self._pieces.ctypes.data, len(self._pieces)
