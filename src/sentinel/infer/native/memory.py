"""Aligned buffers in huge pages: streaming weights from 4 KiB pages reads up to a fifth slower."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

_HUGE = 2 << 20


def buffer(n_byte: int, *, huge: bool = True) -> NDArray[np.uint8]:
    """``n_byte`` zero bytes at an address that is a multiple of 64 (of 2 MiB if large, in huge pages where Linux can).

    Pages take up memory only once they are written to; ``huge`` False keeps that fine-grained for sparse areas.
    """
    n_byte = max(n_byte, 64)
    align = _HUGE if huge and n_byte >= _HUGE else 64
    # private: Linux gives shared anonymous memory huge pages only where an administrator allowed that too
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    area = mmap.mmap(-1, n_byte + align, **private)
    if align == _HUGE and hasattr(area, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages: the same, a little slower
            area.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(area, np.uint8)
    start = -data.ctypes.data % align
    return data[start : start + n_byte]
