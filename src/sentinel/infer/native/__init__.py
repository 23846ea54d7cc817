"""Levels 2 and 3 on the CPU: kernels compiled by Numba, quantisation, and the whole decode step in one call.

Imported lazily. Only what quantises, and the first compilation, import Numba.
"""

from .engine import NativeEngine
from .kernels.cpu import HAS_FAST_VECTORS
from .precisions import Precision
from .weights import NativeWeights
from .widths import PackedWidth

__all__ = ["HAS_FAST_VECTORS", "NativeEngine", "NativeWeights", "PackedWidth", "Precision"]
