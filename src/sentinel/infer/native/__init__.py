"""Levels 2 and 3 on the CPU: kernels compiled by Numba, quantisation, and the whole decode step in one call.

Imported lazily: Numba takes half a second to import.
"""

from .engine import MAX_BATCH, Level, NativeEngine
from .weights import NativeWeights, Precision

__all__ = ["MAX_BATCH", "Level", "NativeEngine", "NativeWeights", "Precision"]
