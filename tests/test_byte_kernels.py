"""Blocks of int8 and int4 weights times rounded rows against float64 NumPy, with every way to sum products of bytes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from native_oracle import dense_int4, run_int4, run_int8

from sentinel.infer.native.blocks import padded
from sentinel.infer.native.kernels import dots, precision_int4, precision_int8
from sentinel.infer.native.kernels.dots import Plain
from sentinel.infer.native.kernels.inputs import COLUMNS
from sentinel.infer.native.kernels.layout import INT4_HALF_BYTES
from sentinel.infer.native.kernels.tiles import block_of
from sentinel.infer.native.packed_file import PackedTensor, PackedTensors
from sentinel.infer.native.precisions import PRECISIONS

RNG = np.random.default_rng(0)
ONE = np.ones(32, np.float32)
WIDE, NARROW = ((12, 2), (4, 2), (2, 2), (1, 2)), ((5, 1), (3, 1), (2, 1), (1, 2))
WAYS = ["own", "signed", "unsigned"]  # what this CPU has, and plain arithmetic on the layout and tiles of others


@functools.cache
def int8_way(way):
    """The block's product, and the offset of its weights."""
    if way == "own":
        return {}
    offset, sizes = (0, NARROW) if way == "signed" else (128, WIDE)
    return {"block": block_of(precision_int8.emit_tile, 64, Plain(offset), sizes), "offset": offset}


@functools.cache
def int4_way(way):
    if way == "own":
        return {}
    offset, sizes = (0, NARROW) if way == "signed" else (128, WIDE)
    return {"block": block_of(precision_int4.emit_tile, INT4_HALF_BYTES, Plain(offset), sizes)}


def rows(tokens, k):
    """Rows of very different sizes, one of zeros, one with an outlier."""
    x = RNG.standard_normal((tokens, k)) * 10.0 ** RNG.integers(-3, 4, (tokens, 1))
    x[tokens // 2] = 0
    x[-1, k // 2] = 1e4
    return x.astype(np.float32)


def close(found, exact, size):
    """As near as sums in float32 can be, by the size of what is summed."""
    assert found.shape == exact.shape
    assert np.all(np.abs(found - exact) <= 2e-6 * size + 1e-30)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("k", [1, 31, 32, 100, 129, 300])
def test_int8_blocks(way, k):
    for tokens in range(1, 14):
        x, w = rows(tokens, k), RNG.integers(-128, 128, (21, k)).astype(np.int8)
        scale = RNG.random(21).astype(np.float32)
        found, meant = run_int8(x, w, scale, **int8_way(way))
        assert np.all(np.abs(meant - x).max(1) <= 0.501 * np.abs(x).max(1) / 127)
        close(found, meant @ w.T.astype(float) * scale, np.abs(meant) @ np.abs(w.astype(float)).T * scale)
        for t in range(tokens):  # one at a time, to the bit
            np.testing.assert_array_equal(run_int8(x[t : t + 1], w, scale, **int8_way(way))[0][0], found[t])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("k", [1, 31, 32, 100, 129, 300])
def test_int4_blocks(way, k):
    for tokens in range(1, 14):
        x, w = rows(tokens, k), RNG.integers(0, 16, (21, k)).astype(np.uint8)
        step, low = (RNG.random((2, 21, padded(k) // 32)) * [[[1]], [[-9]]]).astype(np.float16)
        scale = RNG.random(21).astype(np.float32)
        found, meant = run_int4(x, w, step, low, scale, **int4_way(way))
        size = np.abs(meant) @ (dense_int4(w, step, 0 * low) - dense_int4(0 * w, step, low)).T * scale
        close(found, meant @ dense_int4(w, step, low).T * scale, size)
        for t in range(tokens):
            np.testing.assert_array_equal(run_int4(x[t : t + 1], w, step, low, scale, **int4_way(way))[0][0], found[t])


@pytest.mark.parametrize("k", [33, 256])
def test_every_way_gives_the_same_bits(k):
    """Sums of bytes are exact, and what follows is in one order, whatever a CPU has for them."""
    x, scale = rows(13, k), RNG.random(32).astype(np.float32)
    w8, w4 = RNG.integers(-128, 128, (32, k)).astype(np.int8), RNG.integers(0, 16, (32, k)).astype(np.uint8)
    step, low = RNG.standard_normal((2, 32, padded(k) // 32)).astype(np.float16)
    for way in WAYS[1:]:
        np.testing.assert_array_equal(run_int8(x, w8, scale, **int8_way(way))[0], run_int8(x, w8, scale)[0])
        found, own = (run_int4(x, w4, step, low, scale, **more)[0] for more in (int4_way(way), {}))
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weight", [-128, -127, 0, 127])
@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_int8_at_its_extremes(way, weight, value):
    k = 8190
    found, _ = run_int8(np.full((1, k), value), np.full((32, k), weight, np.int8), ONE, **int8_way(way))
    np.testing.assert_allclose(found, np.full((1, 32), value * weight * k), rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weight", [0, 7, 15])
@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_int4_at_its_extremes(way, weight, value):
    k, groups = 8190, 256
    step, low = np.full((32, groups), 1, np.float16), np.full((32, groups), -8, np.float16)
    found, _ = run_int4(np.full((1, k), value), np.full((32, k), weight, np.uint8), step, low, ONE, **int4_way(way))
    np.testing.assert_allclose(found, np.full((1, 32), value * (weight - 8) * k), rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(way, bad):
    x = np.ones((3, 70), np.float32)
    x[1, 40] = bad
    found, _ = run_int8(x, np.ones((32, 70), np.int8), ONE, **int8_way(way))
    halves = np.ones((2, 32, 3), np.float16)
    for y in (found, run_int4(x, np.ones((32, 70), np.uint8), *halves, ONE, **int4_way(way))[0]):
        assert not np.isfinite(y[1]).any() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("x", [np.zeros(40), RNG.standard_normal(300), np.array([1e-30] * 33), np.array([3e38, -3e38])])
@pytest.mark.parametrize("kernel", [precision_int8, precision_int4])
def test_rounding_rows(x, kernel):
    x = x.astype(np.float32)
    n, size = x.size, padded(x.size)
    n_group = -(-n // COLUMNS)
    q, scale = np.full(size + 1, 99, np.int8), np.full(n_group + 1, 9, np.float32)
    sums = np.full(n_group + 1, 9, np.int32)
    kernel.quantise_row(x.ctypes.data, q.ctypes.data, scale.ctypes.data, sums.ctypes.data, n)
    wide = np.repeat(scale[:-1].astype(float), COLUMNS)[:n]
    assert np.all(np.abs(q[:n] * wide - x) <= 0.501 * wide + 1e-35)
    assert np.all(q[n:size] == 0) and np.abs(q[:size].astype(int)).max() <= 127
    assert q[size] == 99 and scale[-1] == 9 and sums[-1] == 9  # nothing is written beyond
    whole = np.pad(q[:n].astype(int), (0, -n % COLUMNS)).reshape(-1, COLUMNS).sum(1)
    if kernel is precision_int8:
        np.testing.assert_array_equal(sums[:-1], -dots.INT8.OFFSET * whole)
    else:
        np.testing.assert_allclose(sums[:-1].view(np.float32), whole * scale[:-1], rtol=1e-6)


def earlier_int8(values):
    """Bytes of format 1: [K / 2][32 rows][2 columns] a block."""
    n, k = values.shape
    return values.reshape(n // 32, 32, k // 2, 2).transpose(0, 2, 1, 3).copy().reshape(-1).view(np.uint8)


def earlier_int4(values, step, low):
    """Bytes of format 1: words of 16 bits, nibble j of which is the column 2 j further on; steps and lows of 32 rows."""
    n, k = values.shape
    parts = values.astype(np.uint16).reshape(n // 32, 2, 16, k // 32, 4, 4, 2)
    words = sum(parts[..., j, :] << 4 * j for j in range(4))
    words = words.transpose(0, 3, 4, 1, 2, 5).reshape(n // 32, k // 32, -1)
    by_group = [h.reshape(n // 32, 32, k // 32).transpose(0, 2, 1).copy().view(np.uint8) for h in (step, low)]
    return np.concatenate([words.astype("<u2").view(np.uint8), *by_group], axis=2).reshape(-1)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_files_of_format_1_are_read(tmp_path, monkeypatch, kind):
    from sentinel.infer.native import packed_file

    if kind == "int8":
        stored = (RNG.integers(-127, 128, (64, 96)).astype(np.int8),)
        old = earlier_int8(*stored)
    else:
        stored = (RNG.integers(0, 16, (64, 96)).astype(np.uint8), *RNG.random((2, 64, 3)).astype(np.float16))
        old = earlier_int4(*stored)
    vector = RNG.random(32).astype(np.float32)
    parts = {
        "m.packed": PackedTensor(0, old.nbytes, "U8", kind, 64, 96),
        "v": PackedTensor(old.nbytes, vector.nbytes, "F32"),
    }
    monkeypatch.setattr(packed_file, "FORMAT", "sentinel-native-1")
    packed_file.write_packed(tmp_path / "old", PackedTensors(parts, np.concatenate([old, vector.view(np.uint8)])), {})
    monkeypatch.undo()
    read, _ = packed_file.read_packed(tmp_path / "old")
    np.testing.assert_array_equal(read.array("m.packed"), PRECISIONS[kind].pack(stored))
    np.testing.assert_array_equal(read.array("v"), vector)
    assert not np.array_equal(old, read.array("m.packed"))
