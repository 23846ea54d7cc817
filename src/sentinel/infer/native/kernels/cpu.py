"""The vectors that this CPU has, and what of the kernels depends on them. Known without importing Numba.

``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` name another CPU to compile for, as they do for Numba.
"""

from __future__ import annotations

import os
import platform

from llvmlite import binding


def _features() -> str:
    named = os.environ.get("NUMBA_CPU_FEATURES")
    return binding.get_host_cpu_features().flatten() if named is None else named


CPU_NAME: str = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
FEATURE_STRING = _features()

_PRODUCTS_OF_BYTES = """
define i32 @products(ptr %a, ptr %b) {
  %x = load <16 x i8>, ptr %a
  %y = load <16 x i8>, ptr %b
  %wide_x = sext <16 x i8> %x to <16 x i32>
  %wide_y = sext <16 x i8> %y to <16 x i32>
  %product = mul <16 x i32> %wide_x, %wide_y
  %sum = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %product)
  ret i32 %sum
}
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
"""


def has_arm_dot(triple: str, cpu: str, features: str) -> bool:
    """Whether LLVM has Arm's ``sdot`` for a CPU: it may know that by the name of a CPU whose features do not list it.

    The target of the triple must be initialised.
    """
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    return "sdot" in machine.emit_assembly(binding.parse_assembly(_PRODUCTS_OF_BYTES))


def _all_features() -> frozenset[str]:
    listed = frozenset(f[1:] for f in FEATURE_STRING.split(",") if f.startswith("+"))
    if platform.machine() not in ("aarch64", "arm64"):
        return listed
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return listed | ({"dotprod"} if has_arm_dot(binding.get_process_triple(), CPU_NAME, FEATURE_STRING) else set())


CPU_FEATURES = _all_features()
IS_X86 = any(f.startswith(("sse", "avx")) for f in CPU_FEATURES)
HAS_AVX512 = {"avx512f", "avx512bw"} <= CPU_FEATURES
HAS_HALF = bool(
    {"f16c", "neon"} & CPU_FEATURES
)  # converts half precision; without, LLVM calls a library that may be absent
HAS_FAST_VECTORS = bool({"avx2", "neon"} & CPU_FEATURES)

# Tokens per tile, largest first. A token needs two sums of 16 lanes: 16 of the 32 registers of AVX-512 at 8 tokens, 12
# of the 16 of AVX2 at 3. That is enough to keep the multipliers busy; more tokens only cause spills.
TILE_TOKENS = (8, 4, 2, 1) if HAS_AVX512 else (3, 2, 1, 1)

# Tiles of bytes, likewise: tokens, and vectors of 16 rows, of which a block has two. A vector needs a sum of bytes and one
# of floats, each in one of the 32 registers of AVX-512, two of the 16 of AVX2, four of the 32 of NEON. With 12 tokens of
# AVX-512 the floats are kept in memory, and a tile is an eighth slower. A sixth token of AVX2 costs more than it gains.
BYTE_TILES = ((8, 2), (4, 2), (2, 2), (1, 2)) if HAS_AVX512 else ((5, 1), (3, 1), (2, 1), (1, 2))

# How far ahead of a one-token tile its weights are asked for. Zen's own prefetching does most of it: asked for from
# 1,024 bytes on, int4 weights come at 22 GB/s instead of 30.
PREFETCH_BYTES = 512 if CPU_NAME.startswith("znver") else 2048
