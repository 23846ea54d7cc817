"""Levels 2 and 3 on the CPU: kernels compiled by Numba, quantisation, and the whole decode step in one call.

Imported lazily: Numba takes half a second to import.
"""

from .engine import MAX_BATCH, NativeEngine
from .kernels.tiles import HAS_FAST_VECTORS
from .levels import Level
from .weights import NativeWeights, Precision

__all__ = ["HAS_FAST_VECTORS", "MAX_BATCH", "Level", "NativeEngine", "NativeWeights", "Precision"]
