"""The vectors that this CPU has, and what of the kernels depends on them. Known without importing Numba.

``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` name another CPU to compile for, as they do for Numba.
"""

from __future__ import annotations

import os

from llvmlite import binding


def _features() -> str:
    named = os.environ.get("NUMBA_CPU_FEATURES")
    return binding.get_host_cpu_features().flatten() if named is None else named


CPU_NAME: str = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
FEATURE_STRING = _features()
CPU_FEATURES = frozenset(f[1:] for f in FEATURE_STRING.split(",") if f.startswith("+"))
IS_X86 = any(f.startswith(("sse", "avx")) for f in CPU_FEATURES)
HAS_AVX512 = {"avx512f", "avx512bw"} <= CPU_FEATURES
HAS_HALF = bool(
    {"f16c", "neon"} & CPU_FEATURES
)  # converts half precision; without, LLVM calls a library that may be absent
HAS_FAST_VECTORS = bool({"avx2", "neon"} & CPU_FEATURES)

# Tokens per tile, largest first. A token needs two sums of 16 lanes: 16 of the 32 registers of AVX-512 at 8 tokens, 12
# of the 16 of AVX2 at 3. That is enough to keep the multipliers busy; more tokens only cause spills.
TILE_TOKENS = (8, 4, 2, 1) if HAS_AVX512 else (3, 2, 1, 1)
