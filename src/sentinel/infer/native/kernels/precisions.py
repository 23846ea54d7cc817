"""Which precision's code a matrix is for: the one place that looks at a matrix's kind. A file each says the rest."""

from __future__ import annotations

from numba import njit

from . import precision_fp32, precision_int4, precision_int8
from .inputs import X_STRIDE, X
from .layout import KIND
from .names import Kind
from .vector import FAST

_FP32, _INT8 = int(Kind.FP32), int(Kind.INT8)
_product_fp32, _product_int8, _product_int4 = precision_fp32.product, precision_int8.product, precision_int4.product
_put_fp32, _put_int8, _put_int4 = precision_fp32.put_input, precision_int8.put_input, precision_int4.put_input
_embed_fp32, _embed_int8, _embed_int4 = precision_fp32.embed_row, precision_int8.embed_row, precision_int4.embed_row


@njit(**FAST)
def block_product(st, matrix, block, row0, n_token, y):
    """One block of ``matrix`` times ``n_token`` rows of the input from ``row0``: float32 [tokens][32 rows] at ``y``."""
    if matrix[KIND] == _FP32:
        _product_fp32(st, matrix, block, row0, n_token, y)
    elif matrix[KIND] == _INT8:
        _product_int8(st, matrix, block, row0, n_token, y)
    else:
        _product_int4(st, matrix, block, row0, n_token, y)


@njit(**FAST)
def put_input(st, matrix, x, row):
    """Make row ``row`` of the input of ``matrix`` from float32 values at ``x``: copied, or rounded to int8."""
    if matrix[KIND] == _FP32:
        _put_fp32(st, matrix, x, row)
    elif matrix[KIND] == _INT8:
        _put_int8(st, matrix, x, row)
    else:
        _put_int4(st, matrix, x, row)


@njit(**FAST)
def input_or(st, matrix, row, scratch):
    """Where float32 values for row ``row`` of the input are best made: in their place, or at ``scratch`` to be rounded."""
    return st[X] + row * st[X_STRIDE] if matrix[KIND] == _FP32 else scratch


@njit(**FAST)
def embed_row(matrix, token, first, end, out):
    """Columns first..end of row ``token`` of ``matrix`` as float32, into ``out``."""
    if matrix[KIND] == _FP32:
        _embed_fp32(matrix, token, first, end, out)
    elif matrix[KIND] == _INT8:
        _embed_int8(matrix, token, first, end, out)
    else:
        _embed_int4(matrix, token, first, end, out)
