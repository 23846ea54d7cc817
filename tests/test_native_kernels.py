"""Each kernel against float64 NumPy, on random and on the hardest values."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from native_oracle import dense_int4, run_float

from sentinel.infer.native.blocks import padded
from sentinel.infer.native.kernels import vector
from sentinel.infer.native.kernels.names import Activation
from sentinel.infer.native.precisions import PRECISIONS, fp32, int4, int8, packed_bytes
from sentinel.models import layer_spec

RNG = np.random.default_rng(0)


def quantised_int4(weight, gram=None):
    stored, scale = int4.quantise(weight, gram)
    return (*stored, scale)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("k", [1, 7, 32, 100, 768])
def test_float_blocks(tokens, k):
    x, w = RNG.standard_normal((tokens, k)).astype(np.float32), RNG.standard_normal((19, k)).astype(np.float32)
    size = np.abs(x) @ np.abs(w).T.astype(float)
    assert np.all(np.abs(run_float(x, w) - x.astype(float) @ w.T.astype(float)) <= 1e-6 * size)
    rounded = w.astype(np.float16).astype(float)
    assert np.all(np.abs(run_float(x, w, half=True) - x.astype(float) @ rounded.T) <= 1e-6 * size)


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 65), (70, 100)])
def test_packing_and_back(shape):
    n, k = shape
    w = RNG.standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(fp32.unpack(fp32.pack((w,)), n, k)[0], w)
    q = RNG.integers(-127, 128, shape).astype(np.int8)
    np.testing.assert_array_equal(int8.unpack(int8.pack((q,)), n, k)[0], q)
    u = RNG.integers(0, 16, shape).astype(np.uint8)
    s, m = RNG.random((2, n, padded(k) // 32)).astype(np.float16)
    values, step, low = int4.unpack(int4.pack((u, s, m)), n, k)
    np.testing.assert_array_equal(values, u)
    np.testing.assert_array_equal(step, s)
    np.testing.assert_array_equal(low, m)
    packed = {"fp32": fp32.pack((w,)), "int8": int8.pack((q,)), "int4": int4.pack((u, s, m))}
    for kind, data in packed.items():
        assert data.nbytes == packed_bytes(kind, n, k)


@pytest.mark.parametrize("name", PRECISIONS)
def test_what_is_stored_survives_packing(name):
    """Every precision keeps one contract: what was packed stands for the weights that quantising gave."""
    precision, w = PRECISIONS[name], RNG.standard_normal((40, 70)).astype(np.float32)
    stored, scale = precision.quantise(w, np.eye(70, dtype=np.float32))
    data = precision.pack(stored)
    assert data.nbytes == packed_bytes(name, 40, 70) and (scale is not None) == precision.SCALED
    back = precision.dequantise(precision.unpack(data, 40, 70), scale)
    np.testing.assert_array_equal(back, precision.dequantise(stored, scale)[:, :70])
    assert np.abs(back - w).max() < {"fp32": 1e-9, "int8": 0.02, "int4": 0.3}[name]


def test_quantised_weights_are_close():
    w = RNG.standard_normal((40, 100)).astype(np.float32)
    w[3] = 0
    w[5] *= 1e-6
    (values,), scale = int8.quantise(w)
    assert np.all(np.abs(values * scale[:, None] - w) <= 0.5001 * scale[:, None])
    error = dense_int4(*quantised_int4(w))[:, :100] - w
    assert np.sqrt((error**2).sum(1) / np.maximum((w**2).sum(1), 1e-30)).max() < 0.09
    assert not error[3].any()


def test_int4_recovers_a_grid_of_sixteen_values():
    values = RNG.integers(0, 16, (8, 64)).astype(np.float32)
    values[:, ::32], values[:, 1::32] = 0, 15
    w = values * np.float32(0.25) - np.float32(1.5)
    np.testing.assert_allclose(dense_int4(*quantised_int4(w)), w, atol=2e-3)


def test_int4_loses_less_when_it_knows_the_inputs():
    x = RNG.standard_normal((500, 20)) @ RNG.standard_normal((20, 70))
    w = RNG.standard_normal((40, 70)).astype(np.float32)
    plain, informed = (dense_int4(*quantised_int4(w, gram))[:, :70] for gram in (None, (x.T @ x).astype(np.float32)))
    assert np.linalg.norm(x @ (informed - w).T) < 0.6 * np.linalg.norm(x @ (plain - w).T)


def test_every_activation_of_a_model_has_a_kernel():
    assert {activation.name.lower() for activation in Activation} == set(get_args(layer_spec.Activation))


@pytest.mark.parametrize("activation", Activation)
def test_activations(activation):
    hard = [0, -0.0, 1e-30, -1e-30, 100, -100, 1e30, -1e30]
    x = np.concatenate([RNG.standard_normal(61) * 3, hard]).astype(np.float32)
    y = x.copy()
    vector.activate(y.ctypes.data, y.size, activation)
    v = x.astype(float)
    with np.errstate(over="ignore"):
        exact = {
            Activation.RELU: np.maximum(v, 0),
            Activation.SILU: v / (1 + np.exp(-v)),
            Activation.GELU: 0.5 * v * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
            Activation.GELU_NEW: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
        }[activation]
    np.testing.assert_allclose(y, exact, rtol=2e-6, atol=4e-7)


@pytest.mark.parametrize("layernorm", [0, 1])
@pytest.mark.parametrize("n", [1, 48, 777])
def test_norms(layernorm, n):
    x, w, b = (RNG.standard_normal(n).astype(np.float32) for _ in range(3))
    y = np.empty(n, np.float32)
    vector.normalise(x.ctypes.data, y.ctypes.data, n, w.ctypes.data, b.ctypes.data, layernorm, np.float32(1e-5))
    d = x.astype(float) - (x.astype(float).mean() if layernorm else 0)
    exact = d / np.sqrt((d**2).mean() + 1e-5) * w + (b if layernorm else 0)
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("scores", [np.zeros(9), np.linspace(-500, 500, 45), np.array([3.0]), np.full(33, -1e30)])
def test_softmax(scores):
    s = np.concatenate([scores, np.full(4, 7.0)]).astype(np.float32)
    factor = vector.softmax_weights(s.ctypes.data, 0, scores.size, 4, np.float32(0.5))
    scores = scores.astype(np.float32).astype(float)
    e = np.exp((scores - scores.max()) * 0.5)
    np.testing.assert_allclose(s[: scores.size] * factor, e / e.sum(), rtol=2e-6, atol=1e-30)
    assert np.all(s[scores.size :] == 0)
