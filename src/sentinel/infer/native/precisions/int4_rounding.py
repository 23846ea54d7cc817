"""Weights rounded to int4 by least squared error. Compiled by Numba, unlike the rest of this folder."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..kernels.layout import GROUP

_F = np.float32


Rounded = tuple[tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]], NDArray[np.float32]]


@njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _fit_groups(weight, importance, steps, lows):
    """Step and low of every group of 32: the values are rounded to several grids, and a line is fitted to each.

    Weighted least squares of w ~ step * q + low, as GGUF's k-quants do it.
    """
    n, k = weight.shape
    for row in range(n):
        for group in range(k // 32):
            w = weight[row, group * 32 : group * 32 + 32]
            h = importance[group * 32 : group * 32 + 32]
            low, high = w[0], w[0]
            total, sum_w, sum_ww = _F(0), _F(0), _F(0)
            for i in range(32):
                low, high = min(low, w[i]), max(high, w[i])
                total += h[i]
                sum_w += h[i] * w[i]
                sum_ww += h[i] * w[i] * w[i]
            steps[row, group], lows[row, group] = _F(0), sum_w / total if total > 0 else low
            if high <= low:
                continue
            best_error = _F(np.inf)
            for trial in range(-12, 25):
                inverse = (_F(15) - _F(0.1) * _F(trial)) / (high - low)
                if trial > 12:  # coarse grids that leave out the ends
                    inverse = (_F(15) + _F(0.25) * _F(trial - 12)) / (high - low)
                middle = (low + high) * _F(0.5)
                sum_q, sum_qq, sum_qw = _F(0), _F(0), _F(0)
                for i in range(32):
                    q = min(max(np.rint((w[i] - middle) * inverse + _F(7.5)), _F(0)), _F(15))
                    sum_q += h[i] * q
                    sum_qq += h[i] * q * q
                    sum_qw += h[i] * q * w[i]
                determinant = total * sum_qq - sum_q * sum_q
                if determinant <= 0:
                    continue
                step = (total * sum_qw - sum_q * sum_w) / determinant
                base = (sum_w - step * sum_q) / total
                error = sum_ww - step * sum_qw - base * sum_w
                if error < best_error and step > 0:
                    best_error = error
                    steps[row, group], lows[row, group] = step, base


def _grid(
    weight: NDArray[np.float32], importance: NDArray[np.float32], row_scale: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float32]]:
    """Steps and lows [N, K / 32] as fractions of the row scales [N], for K a multiple of 32."""
    n, columns = weight.shape
    steps, lows = np.empty((n, columns // GROUP), np.float32), np.empty((n, columns // GROUP), np.float32)
    _fit_groups(weight, importance, steps, lows)
    found = np.maximum(np.abs(steps).max(axis=1), np.abs(lows).max(axis=1) / _F(1000)).astype(np.float32)
    scale = found if row_scale is None else row_scale
    inverse = np.divide(_F(1), scale, out=np.zeros_like(scale), where=scale > 0)[:, None]
    return (steps * inverse).astype(np.float16), (lows * inverse).astype(np.float16), scale


def _rounded_to(weight: NDArray[np.float32], step: NDArray[np.float32], low: NDArray[np.float32]) -> NDArray[np.uint8]:
    inverse = np.divide(_F(1), step, out=np.zeros_like(step), where=step > 0)
    return np.clip(np.rint((weight - low) * inverse), 0, 15).astype(np.uint8)


def rounded(weight: NDArray[np.float32], gram: NDArray | None) -> Rounded:
    """Values [N, K'] in 0..15, steps and lows [N, K' / 32]; row scales [N]: weight ~ (value * step + low) * row scale.

    K' is K rounded up to 32. ``gram`` [K, K] is the sum of x x^T over inputs x: with it, the error of a column is made
    up for by the columns after it (GPTQ, Frantar et al. 2023). Without, every weight's error counts the same.
    """
    n, k = weight.shape
    columns = -(-k // GROUP) * GROUP
    full = np.zeros((n, columns), np.float32)
    full[:, :k] = weight
    if gram is not None:
        return _compensated(full, k, gram)
    step, low, scale = _grid(full, (np.arange(columns) < k).astype(np.float32))
    wide_step, wide_low = (np.repeat(x.astype(np.float32) * scale[:, None], GROUP, axis=1) for x in (step, low))
    return (_rounded_to(full, wide_step, wide_low), step, low), scale


@njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _compensate_group(block, spread, steps, lows, values, errors):
    """Round a group's 32 columns [N, 32] from left to right; each error moves the columns after it (in place)."""
    for row in range(block.shape[0]):
        step, low = steps[row], lows[row]
        inverse = _F(1) / step if step > 0 else _F(0)
        w = block[row]
        for j in range(GROUP):
            q = min(max(np.rint((w[j] - low) * inverse), _F(0)), _F(15))
            values[row, j] = np.uint8(q)
            error = (w[j] - (q * step + low)) / spread[j, j]
            errors[row, j] = error
            for i in range(j + 1, GROUP):
                w[i] -= error * spread[j, i]


def _compensated(weight: NDArray[np.float32], k: int, gram: NDArray) -> Rounded:
    n, columns = weight.shape
    hessian = np.eye(columns, dtype=np.float64)
    hessian[:k, :k] = gram
    diagonal = hessian.diagonal()[:k]
    hessian[np.arange(columns), np.arange(columns)] += 0.01 * max(float(diagonal.mean()), 1e-20)
    # upper Cholesky factor of the inverse: row j tells how column j's error is spread over the columns after it
    spread = np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    importance = np.ascontiguousarray(hessian.diagonal(), np.float32)
    importance /= importance.mean()
    _, _, scale = _grid(weight, importance)
    values = np.empty((n, columns), np.uint8)
    steps, lows = np.empty((n, columns // GROUP), np.float16), np.empty((n, columns // GROUP), np.float16)
    left = weight.copy()
    for group in range(columns // GROUP):
        part = slice(group * GROUP, (group + 1) * GROUP)
        block = np.ascontiguousarray(left[:, part])
        step, low, _ = _grid(block, importance[part], scale)
        steps[:, group], lows[:, group] = step[:, 0], low[:, 0]
        group_values, errors = np.empty((n, GROUP), np.uint8), np.empty((n, GROUP), np.float32)
        wide_step, wide_low = (v[:, 0].astype(np.float32) * scale for v in (step, low))
        _compensate_group(block, np.ascontiguousarray(spread[part, part]), wide_step, wide_low, group_values, errors)
        values[:, part] = group_values
        left[:, part.stop :] -= errors @ spread[part, part.stop :]
    return (values, steps, lows), scale
