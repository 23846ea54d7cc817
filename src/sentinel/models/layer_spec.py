"""The parts of one layer's specification: rotary positions, attention, MLP. Frozen and validated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sentinel.errors import InputError

Activation = Literal["gelu_new", "gelu", "silu", "relu"]
RopeType = Literal["default", "linear", "llama3", "yarn", "longrope"]
QKNorm = Literal["head", "whole"]

WINDOW_SLACK = 128  # cached positions beyond a window: of one pass of tokens, or of tokens that are taken away again


def require(condition: bool, message: str) -> None:
    """Raise `InputError` with that message unless the condition holds."""
    if not condition:
        raise InputError(message)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def require_flags(spec: Any, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        require(isinstance(value, bool), f"{name} must be true or false, not {value!r}")


def as_number(name: str, value: Any) -> float:
    """A float: a whole number may stand there, text and NaN may not."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    require(good, f"{name} must be a number, not {value!r}")
    return float(value)


def take_numbers(spec: Any, *names: str) -> None:
    """Make floats of the fields ``names``."""
    for name in names:
        object.__setattr__(spec, name, as_number(name, getattr(spec, name)))


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021) of the first ``dim`` numbers of a head, by default of all.

    ``linear`` divides positions by ``factor``. ``llama3`` (Llama 3.1) also needs ``low_freq_factor`` and
    ``high_freq_factor``, ``yarn`` (Peng et al. 2023) ``beta_fast`` and ``beta_slow``, ``longrope`` (Ding et al. 2024) a
    divisor per frequency, one list for texts up to ``original_max_seq_len`` and one for longer ones. ``attention_factor``
    multiplies cosines and sines.
    """

    theta: float
    type: RopeType = "default"
    dim: int | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        take_numbers(self, "theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")
        take_numbers(self, "beta_fast", "beta_slow", "attention_factor")
        require_flags(self, "truncate")
        object.__setattr__(self, "original_max_seq_len", int(self.original_max_seq_len))
        for name in ("short_factors", "long_factors"):
            factors = tuple(as_number(f"rope {name}", value) for value in getattr(self, name))
            require(all(factor > 0 for factor in factors), f"rope {name} must be positive")
            object.__setattr__(self, name, factors)
        require(self.theta > 0, f"rope theta must be positive, not {self.theta!r}")
        require(self.type in get_args(RopeType), f"rope type {self.type!r} is not supported")
        require(self.factor >= 1, f"rope factor must be at least 1, not {self.factor!r}")
        require(
            0 < self.low_freq_factor < self.high_freq_factor and self.original_max_seq_len >= 1,
            "rope: low_freq_factor must be above 0 and below high_freq_factor, and original_max_seq_len at least 1",
        )
        require(
            0 < self.beta_slow < self.beta_fast and self.attention_factor > 0,
            "rope: beta_slow must be above 0 and below beta_fast, and attention_factor above 0",
        )
        good = self.dim is None or (is_whole(self.dim) and self.dim >= 2 and self.dim % 2 == 0)
        require(good, f"rope dim must be an even number of at least 2, not {self.dim!r}")

    def dim_of(self, head_dim: int) -> int:
        """How many numbers of a head of that size are turned."""
        return head_dim if self.dim is None else self.dim

    def check(self, head_dim: int) -> None:
        """Raise `InputError` unless heads of that size can be turned so."""
        require(head_dim % 2 == 0 or self.dim is not None, "rotary positions need an even head_dim")
        dim = self.dim_of(head_dim)
        require(dim <= head_dim, f"rope dim {dim} is above the head_dim of {head_dim}")
        if self.type == "longrope":
            both = (len(self.short_factors), len(self.long_factors))
            require(both == (dim // 2, dim // 2), f"longrope needs {dim // 2} short and long factors, not {both}")


def ring_size(window: int, room: int) -> int:
    """Positions that the KV cache has in a layer with that window, for a sequence of up to ``room`` tokens: all, or a ring
    of the newest. Position p is in place p modulo its size: the window and `WINDOW_SLACK` more, in blocks of 32."""
    return min(room, -(-(window + WINDOW_SLACK) // 32) * 32)


@dataclass(frozen=True)
class AttentionSpec:
    """Sizes and features of one layer's attention.

    ``n_head`` query heads share ``n_kv_head`` key/value heads in equal groups (grouped-query attention; equal numbers
    are plain multi-head attention). A layer without heads has zeros there.

    rope: None where this layer has no rotary positions. window: a token sees itself and ``window - 1`` before it.
    qk_norm: RMS norm of queries and keys before they are turned, of every "head" or over the "whole" of the heads in use.
    scale: of the scores, by default 1 / sqrt(head_dim). soft_cap: scores are ``soft_cap * tanh(scores / soft_cap)``.
    """

    n_head: int
    n_kv_head: int
    head_dim: int
    rope: RopeSpec | None = None
    window: int | None = None
    qk_norm: QKNorm | None = None
    scale: float | None = None
    soft_cap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("n_head", "n_kv_head", "head_dim"):
            value = getattr(self, name)
            require(is_whole(value) and value >= 0, f"{name} must be a whole number of at least 0, not {value!r}")
        require(self.head_dim > 0, "head_dim must be at least 1")
        require(
            (self.n_head == 0) == (self.n_kv_head == 0),
            f"n_head {self.n_head} and n_kv_head {self.n_kv_head} must be zero together",
        )
        require(
            self.n_kv_head == 0 or self.n_head % self.n_kv_head == 0,
            f"n_head {self.n_head} must be a multiple of n_kv_head {self.n_kv_head}",
        )
        require_flags(self, "qkv_bias", "out_bias")
        if self.rope is not None:
            self.rope.check(self.head_dim)
        good = self.window is None or (is_whole(self.window) and self.window >= 1)
        require(good, f"an attention window must be a whole number of at least 1, not {self.window!r}")
        require(self.qk_norm in (None, "head", "whole"), f"qk_norm {self.qk_norm!r} is not supported")
        for name in ("scale", "soft_cap"):
            if getattr(self, name) is not None:
                take_numbers(self, name)
                require(getattr(self, name) > 0, f"an attention {name} must be above 0, not {getattr(self, name)!r}")

    @property
    def group_size(self) -> int:
        """Query heads per key/value head (0 in a layer without heads)."""
        return self.n_head // self.n_kv_head if self.n_kv_head else 0

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused query/key/value projection."""
        return (self.n_head + 2 * self.n_kv_head) * self.head_dim

    def cached(self, room: int) -> int:
        """Positions that the KV cache has for a sequence of up to ``room`` tokens."""
        return room if self.window is None else ring_size(self.window, room)

    def seen(self, context: float) -> float:
        """How many of ``context`` positions a token looks at."""
        return context if self.window is None else min(context, self.window)

    @property
    def score_scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return self.head_dim**-0.5 if self.scale is None else self.scale


@dataclass(frozen=True)
class MlpSpec:
    """Sizes and features of one layer's MLP; ``gated`` is SwiGLU and its like (Shazeer 2020). Zero neurons are allowed."""

    intermediate_size: int
    activation: Activation
    gated: bool = False
    up_bias: bool = False
    down_bias: bool = False

    def __post_init__(self) -> None:
        value = self.intermediate_size
        require(
            is_whole(value) and value >= 0, f"intermediate_size must be a whole number of at least 0, not {value!r}"
        )
        require(self.activation in get_args(Activation), f"activation {self.activation!r} is not supported")
        require_flags(self, "gated", "up_bias", "down_bias")


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: its attention and its MLP."""

    attention: AttentionSpec
    mlp: MlpSpec

    @property
    def n_head(self) -> int:
        return self.attention.n_head

    @property
    def n_kv_head(self) -> int:
        return self.attention.n_kv_head

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim

    @property
    def group_size(self) -> int:
        return self.attention.group_size

    @property
    def qkv_rows(self) -> int:
        return self.attention.qkv_rows

    @property
    def intermediate_size(self) -> int:
        return self.mlp.intermediate_size
