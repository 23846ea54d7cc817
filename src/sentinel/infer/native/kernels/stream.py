"""A pass that only reads: what memory gives to a decode step's threads, the most that such a step can reach."""

from __future__ import annotations

from numba import njit

from .intrinsics import i64_table, i64_view, prefetch_line
from .layout import P_READ, S

_THREADS, _PIECES, _N_PIECE, _REPEATS = int(S.THREADS), int(S.PIECES), int(S.N_PIECE), int(S.REPEATS)
_PRIVATE, _PRIVATE_STRIDE = int(S.PRIVATE), int(S.PRIVATE_STRIDE)
_CHUNK = 1024  # bytes that are asked for together
_AHEAD = 2048  # how far ahead, as in a one-token tile (`emit`)


@njit
def stream(st, thread):
    """One thread's part: its share of every piece, as of a matrix, in the order of memory."""
    pieces = i64_table(st[_PIECES], st[_N_PIECE], 2)
    n_thread, total = st[_THREADS], 0
    for _ in range(st[_REPEATS]):
        for p in range(st[_N_PIECE]):
            n_chunk = pieces[p, 1] // _CHUNK
            first, end = n_chunk * thread // n_thread, n_chunk * (thread + 1) // n_thread
            for chunk in range(first, end):
                start = pieces[p, 0] + chunk * _CHUNK
                for line in range(0, _CHUNK, 64):
                    prefetch_line(start + _AHEAD + line)
                values = i64_view(start, _CHUNK // 8)
                for i in range(_CHUNK // 8):
                    total += values[i]
    i64_view(st[_PRIVATE] + thread * st[_PRIVATE_STRIDE] + P_READ, 1)[0] = total
