"""What a model is made of: frozen, validated, written to and read from JSON.

Sizes use the field's names: ``n_layer``, ``n_head``, ``n_kv_head``, ``head_dim``, ``n_embd``, ``intermediate_size``,
``vocab_size``, ``max_seq_len``.
Layers may differ from each other; zero heads and zero neurons are allowed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sentinel.errors import InputError

Norm = Literal["layernorm", "rmsnorm"]
Positions = Literal["learned", "rope"]
Activation = Literal["gelu_new", "gelu", "silu", "relu"]
RopeType = Literal["default", "linear", "llama3"]

SPEC_VERSION = 1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True)
class LayerSpec:
    """Sizes of one decoder layer.

    ``n_head`` query heads share ``n_kv_head`` key/value heads in equal groups (grouped-query attention; equal numbers
    are plain multi-head attention). A layer without heads or without neurons has zeros there.
    """

    n_head: int
    n_kv_head: int
    head_dim: int
    intermediate_size: int

    def __post_init__(self) -> None:
        for name in ("n_head", "n_kv_head", "head_dim", "intermediate_size"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 0,
                f"{name} must be a whole number of at least 0, not {value!r}",
            )
        _require(self.head_dim > 0, "head_dim must be at least 1")
        _require(
            (self.n_head == 0) == (self.n_kv_head == 0),
            f"n_head {self.n_head} and n_kv_head {self.n_kv_head} must be zero together",
        )
        _require(
            self.n_kv_head == 0 or self.n_head % self.n_kv_head == 0,
            f"n_head {self.n_head} must be a multiple of n_kv_head {self.n_kv_head}",
        )

    @property
    def group_size(self) -> int:
        """Query heads per key/value head (0 in a layer without heads)."""
        return self.n_head // self.n_kv_head if self.n_kv_head else 0

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused query/key/value projection."""
        return (self.n_head + 2 * self.n_kv_head) * self.head_dim


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021), with the scalings of Llama checkpoints.

    ``linear`` divides positions by ``factor``. ``llama3`` also needs the three ``llama3``-only fields (Llama 3.1).
    """

    theta: float
    type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        _require(self.theta > 0, f"rope theta must be positive, not {self.theta!r}")
        _require(self.type in ("default", "linear", "llama3"), f"rope type {self.type!r} is not supported")
        _require(self.factor >= 1, f"rope factor must be at least 1, not {self.factor!r}")


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model: sizes, features, and one `LayerSpec` per layer."""

    family: str
    vocab_size: int
    n_embd: int
    max_seq_len: int
    layers: tuple[LayerSpec, ...]
    norm: Norm
    norm_eps: float
    positions: Positions
    rope: RopeSpec | None
    activation: Activation
    gated_mlp: bool
    qkv_bias: bool
    out_bias: bool
    up_bias: bool
    down_bias: bool
    tied_head: bool

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_embd", "max_seq_len"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) and value > 0, f"{name} must be a whole number of at least 1, not {value!r}"
            )
        _require(len(self.layers) > 0, "a model needs at least one layer")
        _require(self.norm in ("layernorm", "rmsnorm"), f"norm {self.norm!r} is not supported")
        _require(self.norm_eps >= 0, f"norm_eps must not be negative, not {self.norm_eps!r}")
        _require(self.positions in ("learned", "rope"), f"positions {self.positions!r} is not supported")
        _require(
            (self.positions == "rope") == (self.rope is not None), "rope settings are given when positions are 'rope'"
        )
        _require(
            self.activation in ("gelu_new", "gelu", "silu", "relu"), f"activation {self.activation!r} is not supported"
        )
        if self.rope is not None:
            for i, layer in enumerate(self.layers):
                _require(layer.head_dim % 2 == 0, f"layer {i}: rotary positions need an even head_dim")

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    @property
    def n_head_total(self) -> int:
        """Query heads in all layers."""
        return sum(layer.n_head for layer in self.layers)

    @property
    def is_uniform(self) -> bool:
        """True when all layers have the same sizes."""
        return len(set(self.layers)) == 1

    def with_counts(self, groups: Sequence[int], neurons: Sequence[int]) -> ModelSpec:
        """The same model with that many key/value groups and neurons per layer."""
        layers = tuple(
            dataclasses.replace(layer, n_head=g * layer.group_size, n_kv_head=g, intermediate_size=f)
            for layer, g, f in zip(self.layers, groups, neurons, strict=True)
        )
        return dataclasses.replace(self, layers=layers)

    # --- arithmetic -------------------------------------------------------------------------------------------------

    def layer_weights(self, layer: LayerSpec) -> int:
        """Weights of one layer's matrices and their biases (norms and gates excluded)."""
        attention = 0
        if layer.n_head:
            out_columns = layer.n_head * layer.head_dim
            attention = layer.qkv_rows * (self.n_embd + self.qkv_bias) + self.n_embd * out_columns
        attention += self.n_embd * self.out_bias
        mlp = layer.intermediate_size * ((1 + self.gated_mlp) * (self.n_embd + self.up_bias) + self.n_embd)
        return attention + mlp + self.n_embd * self.down_bias

    @property
    def norm_weights(self) -> int:
        """Weights of all norms: two per layer and the final one."""
        per_norm = self.n_embd * (2 if self.norm == "layernorm" else 1)
        return (2 * self.n_layer + 1) * per_norm

    def parameter_count(self, *, gates: bool = False) -> int:
        """Number of parameters, as Hugging Face counts them (tied head once); ``gates`` adds one per head."""
        embeddings = self.vocab_size * self.n_embd * (1 if self.tied_head else 2)
        if self.positions == "learned":
            embeddings += self.max_seq_len * self.n_embd
        matrices = sum(self.layer_weights(layer) for layer in self.layers)
        return embeddings + matrices + self.norm_weights + (self.n_head_total if gates else 0)

    def streamed_weights_per_token(self) -> int:
        """Weights read from memory to decode one token at batch 1: every matrix once and one embedding row."""
        head = self.vocab_size * self.n_embd
        rows = self.n_embd * (2 if self.positions == "learned" else 1)
        return sum(self.layer_weights(layer) for layer in self.layers) + self.norm_weights + head + rows

    def weight_bytes_per_token(self, bytes_per_weight: float = 4.0) -> int:
        """Bytes of weights streamed to decode one token at batch 1 (4 bytes a weight in fp32)."""
        return round(self.streamed_weights_per_token() * bytes_per_weight)

    def kv_bytes_per_position(self, bytes_per_value: float = 4.0) -> int:
        """Bytes that one cached position takes over all layers (keys and values)."""
        return round(sum(2 * layer.n_kv_head * layer.head_dim for layer in self.layers) * bytes_per_value)

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations to decode one token with ``context`` cached positions (2 per multiply-add)."""
        attention = sum(4 * layer.n_head * layer.head_dim * context for layer in self.layers)
        return 2 * self.streamed_weights_per_token() + attention

    # --- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {"spec_version": SPEC_VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`. Raises `InputError` for another version, and for unknown or missing fields, by name."""
        data = dict(data)
        version = data.pop("spec_version", None)
        _require(
            version == SPEC_VERSION,
            f"model spec has version {version!r}; this version of sentinel reads version {SPEC_VERSION}",
        )
        layers = data.pop("layers", None)
        _require(isinstance(layers, (list, tuple)), "model spec: 'layers' must be a list")
        rope = data.pop("rope", None)
        parsed: dict[str, Any] = {
            "layers": tuple(_build(LayerSpec, layer, f"layer {i}") for i, layer in enumerate(layers or ())),
            "rope": None if rope is None else _build(RopeSpec, rope, "rope"),
        }
        return _build(cls, {**data, **parsed}, "model spec")

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of `to_json`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"model spec is not valid JSON ({error})") from error
        _require(isinstance(data, dict), "model spec must be a JSON object")
        return cls.from_dict(data)


def _build(cls: type[Any], data: Any, where: str) -> Any:
    """Make dataclass ``cls`` of exactly the fields in ``data``."""
    _require(isinstance(data, dict), f"{where}: expected an object, not {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    unknown, missing = sorted(set(data) - set(fields)), sorted(required - set(data))
    _require(not unknown, f"{where}: unknown field {', '.join(unknown)}")
    _require(not missing, f"{where}: missing field {', '.join(missing)}")
    return cls(**data)
