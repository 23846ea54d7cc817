"""Tiles of bytes compiled for CPUs that this one is not: what they are made of, and, for Arm, what they compute."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import native_oracle as oracle
import numpy as np
import pytest
from llvmlite import binding, ir

from sentinel.infer.native.kernels import precision_int4, precision_int8
from sentinel.infer.native.kernels.cpu import has_arm_dot
from sentinel.infer.native.kernels.dots import Neon, Plain, SignedPairs, SmallPairs, Vnni, dots_of
from sentinel.infer.native.kernels.layout import INT4_HALF_BYTES
from sentinel.infer.native.kernels.tiles import Tile
from sentinel.infer.native.precisions import int4, int8

X86, ARM = "x86_64-linux-gnu", "aarch64-linux-gnu"
EMITTERS = {"int8": precision_int8.emit_tile, "int4": precision_int4.emit_tile}
AVX2 = {"sse2", "avx", "avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
SIZES = (5, 3, 2, 1)

# Reads sizes and arrays, calls each tile for both halves of the rows, and writes the products.
MAIN = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef void tile(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
extern tile tile_5, tile_3, tile_2, tile_1;
static char *area(int64_t size) {
    char *found = aligned_alloc(64, (size + 63) / 64 * 64 + 64);
    if (fread(found, 1, size, stdin) != (size_t)size) exit(1);
    return found;
}
int main(void) {
    int64_t n[9];
    if (fread(n, 8, 9, stdin) != 9) return 1;
    char *x = area(n[0]), *scale = area(n[1]), *sum = area(n[2]), *w = area(n[3]), *row = area(n[4]);
    int64_t x_stride = n[5], scale_stride = n[6], n_group = n[7], half = n[8], tokens[] = {5, 3, 2, 1};
    tile *tiles[] = {tile_5, tile_3, tile_2, tile_1};
    for (int i = 0; i < 4; i++) {
        float y[5 * 32];
        for (int h = tokens[i] == 1 ? 1 : 0; h < 2; h++) {
            int64_t at = tokens[i] == 1 ? 0 : h;  // a lone token takes all rows at once
            tiles[i]((int64_t)x, x_stride, (int64_t)scale, (int64_t)sum, scale_stride, (int64_t)w + at * half,
                     (int64_t)row + at * 64, n_group, 0, (int64_t)y + at * 64, 128);
        }
        fwrite(y, 128, tokens[i], stdout);
    }
    return 0;
}
"""


def module_of(tiles, triple):
    """A module with a function for each of ``tiles``: name -> (emitter, size, dots)."""
    module = ir.Module("tiles")
    module.triple = triple
    for name, (emit, size, how) in tiles.items():
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 11), name)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        emit(builder, function.args, size, how)
        builder.ret_void()
    return module


def compiled(tiles, triple, cpu, features=""):
    """The target machine, and the module as it is optimised for it."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = binding.parse_assembly(str(module_of(tiles, triple)))
    module.verify()
    options = {"cpu": cpu, "features": features, "opt": 3, "reloc": "pic", "codemodel": "default"}
    machine = binding.Target.from_triple(triple).create_target_machine(**options)
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    return machine, module


@pytest.mark.parametrize(
    ("features", "int8_dots", "int4_dots"),
    [
        (AVX512 | {"avx512vnni", "avxvnni"}, Vnni(512), Vnni(512)),
        (AVX2 | {"avxvnni"}, Vnni(256), Vnni(256)),
        (AVX512, SignedPairs(512), SmallPairs(512)),
        (AVX2, SignedPairs(256), SmallPairs(256)),
        ({"neon", "dotprod", "i8mm"}, Neon(), Neon()),
        ({"neon"}, Plain(0), Plain(0)),
        ({"sse2"}, Plain(0), Plain(0)),
    ],
)
def test_a_cpu_gets_the_best_that_it_has(features, int8_dots, int4_dots):
    found = dots_of(frozenset(features))
    for one, wanted in zip(found, (int8_dots, int4_dots), strict=True):
        assert type(one) is type(wanted) and vars(one) == vars(wanted)


def test_llvm_knows_which_arm_has_dot_products():
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    for cpu, features, wanted in (
        ("neoverse-n1", "", True), ("apple-m1", "", True), ("generic", "+dotprod", True),
        ("cortex-a72", "", False), ("generic", "", False),
    ):  # fmt: skip
        assert has_arm_dot(ARM, cpu, features) == wanted


@pytest.mark.parametrize("kind", EMITTERS)
@pytest.mark.parametrize(
    ("how", "cpu", "features", "wanted"),
    [
        (Vnni(512), "cascadelake", "", r"vpdpbusd\t.*%zmm"),
        (Vnni(512), "sapphirerapids", "", r"vpdpbusd\t.*%zmm"),
        (Vnni(512), "znver4", "", r"vpdpbusd\t.*%zmm"),
        (Vnni(256), "sierraforest", "", r"vpdpbusd\t.*%ymm"),
        (Vnni(256), "alderlake", "", r"vpdpbusd\t.*%ymm"),
        (Neon(), "neoverse-n1", "", r"sdot\t.*"),
        (Neon(), "generic", "+dotprod", r"sdot\t.*"),
    ],
)
def test_tiles_use_the_instructions_of_their_cpu(kind, how, cpu, features, wanted):
    """As many products as the tile has, by that instruction alone, for an unrolled group of int4."""
    triple = ARM if isinstance(how, Neon) else X86
    size = Tile(12, 2) if "zmm" in wanted else Tile(5, 1)
    machine, module = compiled({"tile": (EMITTERS[kind], size, how)}, triple, cpu, features)
    text = machine.emit_assembly(module)
    found = len(re.findall(wanted, text))
    per_vector = 1 if "zmm" in wanted else (4 if triple == ARM else 2)
    quads = 8 if kind == "int4" else 1
    assert found > 0 and found % (size.tokens * size.halves * quads * per_vector) == 0
    assert "vpmaddwd" not in text and "vpmull" not in text and "smull" not in text


def arm_runner():
    """The commands that link and run a program for 64-bit Arm."""
    missing = [tool for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(tool) is None]
    if missing or not Path("/usr/aarch64-linux-gnu").is_dir():
        pytest.skip(f"this machine lacks {' and '.join(missing) or 'the C library of 64-bit Arm'}")
    return ["aarch64-linux-gnu-gcc", "-O1", "-o"], ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]


@pytest.mark.skipif(sys.platform != "linux", reason="the cross compiler is Linux's")
@pytest.mark.parametrize("k", [33, 300])
@pytest.mark.parametrize("kind", EMITTERS)
def test_arm_computes_the_same_bits(tmp_path, kind, k):
    link, run = arm_runner()
    rng = np.random.default_rng(0)
    x, scale = rng.standard_normal((5, k)).astype(np.float32), rng.random(32).astype(np.float32)
    x[3] *= 1e4
    if kind == "int8":
        rows, half_bytes = oracle.int8_rows(x, 0), 64
        packed = int8.pack((rng.integers(-128, 128, (32, k)).astype(np.int8),))
        own = oracle.run_bytes(precision_int8.int8_block, oracle.int8_rows(x), packed, scale)
    else:
        rows, half_bytes = oracle.int4_rows(x), INT4_HALF_BYTES
        halves = rng.standard_normal((2, 32, -(-k // 32))).astype(np.float16)
        packed = int4.pack((rng.integers(0, 16, (32, k)).astype(np.uint8), *halves))
        own = oracle.run_bytes(precision_int4.int4_block, rows, packed, scale)
    tiles = {f"tile_{t}": (EMITTERS[kind], Tile(t, 2 if t == 1 else 1), Neon()) for t in SIZES}
    machine, module = compiled(tiles, ARM, "generic", "+dotprod")
    (tmp_path / "tiles.o").write_bytes(machine.emit_object(module))
    (tmp_path / "main.c").write_text(MAIN)
    subprocess.run([*link, tmp_path / "main", tmp_path / "main.c", tmp_path / "tiles.o"], check=True)
    areas = (*rows[:3], packed, scale)
    sizes = [a.nbytes for a in areas] + [rows[0].strides[0], rows[1].strides[0], rows[0].shape[1] // 32, half_bytes]
    given = np.array(sizes, np.int64).tobytes() + b"".join(a.tobytes() for a in areas)
    done = subprocess.run([*run, tmp_path / "main"], input=given, capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.float32).reshape(-1, 32)
    np.testing.assert_array_equal(found, np.concatenate([own[:t] for t in SIZES]))
