"""Numbers that Python and the compiled step share, by name: `layout` says where they stand."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """How the values of a matrix are stored; a row of its input is float32, or int8 with scales."""

    FP32 = 0
    INT8 = 1
    INT4 = 2


class Activation(IntEnum):
    """Activation functions of the MLP."""

    GELU_NEW = 0
    GELU = 1
    SILU = 2
    RELU = 3


class Part(IntEnum):
    """Parts of a pass whose time is counted, in all layers together."""

    EMBED = 0
    NORM = 1  # before q/k/v
    QKV = 2
    CACHE = 3
    ATTENTION = 4
    OUT = 5
    NORM2 = 6  # before the MLP
    UP = 7
    QUANTISE = 8  # the input of the down projection
    DOWN = 9
    HEAD = 10
    FUSE = 11
