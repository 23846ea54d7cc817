"""What a model is made of: frozen, validated, written to and read from JSON.

Sizes use the field's names: ``n_layer``, ``n_head``, ``n_kv_head``, ``head_dim``, ``n_embd``, ``intermediate_size``,
``vocab_size``, ``max_seq_len``.
Layers may differ from each other; zero heads and zero neurons are allowed.
"""

from __future__ import annotations

import dataclasses
import json
import math
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


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _take_numbers(spec: Any, *names: str) -> None:
    """Make floats of the fields ``names``: a whole number may stand there, text and NaN may not."""
    for name in names:
        value = getattr(spec, name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        _require(good, f"{name} must be a number, not {value!r}")
        object.__setattr__(spec, name, float(value))


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
                _is_whole(value) and value >= 0,
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
        _take_numbers(self, "theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")
        object.__setattr__(self, "original_max_seq_len", int(self.original_max_seq_len))
        _require(self.theta > 0, f"rope theta must be positive, not {self.theta!r}")
        _require(self.type in ("default", "linear", "llama3"), f"rope type {self.type!r} is not supported")
        _require(self.factor >= 1, f"rope factor must be at least 1, not {self.factor!r}")
        _require(
            0 < self.low_freq_factor < self.high_freq_factor and self.original_max_seq_len >= 1,
            "rope: low_freq_factor must be above 0 and below high_freq_factor, and original_max_seq_len at least 1",
        )


@dataclass(frozen=True)
class IntegrationSpec:
    """What late layers borrow: early states (U-Net ``skips``), and the states of the unpruned model (``baseline``).

    ``baseline`` is the unpruned model without its last layer and its LM head, whose outputs nobody reads. ``rank`` is
    that of the fusions; None is full rank.
    """

    skips: bool
    baseline: ModelSpec | None
    rank: int | None

    def __post_init__(self) -> None:
        _require(isinstance(self.skips, bool), f"skips must be true or false, not {self.skips!r}")
        _require(self.skips or self.baseline is not None, "an integration needs skips, a baseline, or both")
        _require(
            self.rank is None or (_is_whole(self.rank) and self.rank >= 1),
            f"the rank of an integration must be at least 1, not {self.rank!r}",
        )

    def check(self, spec: ModelSpec) -> None:
        """Raise `InputError` unless this fits the model ``spec``."""
        _require(spec.n_layer >= 2, "an integration needs a model of at least two layers")
        _require(
            self.rank is None or self.rank <= spec.n_embd,
            f"rank {self.rank} is above the model's width of {spec.n_embd}; take full rank",
        )
        other = self.baseline
        if other is None:
            return
        _require(other.integration is None, "the baseline must be a plain model, without an integration of its own")
        _require(
            other.n_layer == spec.n_layer - 1,
            f"the baseline has {other.n_layer + 1} layers, but the model {spec.n_layer}; they must be as many",
        )
        for name in ("n_embd", "vocab_size", "norm", "norm_eps", "activation", "gated_mlp", "positions", "rope"):
            ours, theirs = getattr(spec, name), getattr(other, name)
            _require(ours == theirs, f"the baseline has {name} {theirs}, but the model {ours}; they must be the same")
        _require(
            other.max_seq_len >= spec.max_seq_len,
            f"the baseline's context of {other.max_seq_len} is shorter than the model's of {spec.max_seq_len}",
        )

    def fusion_weights(self, spec: ModelSpec) -> int:
        """Weights of all fusions: two norms, the matrices, a bias and a gate each."""
        width = spec.n_embd
        matrices = 2 * width * width if self.rank is None else 3 * width * self.rank
        each = 2 * spec.weights_per_norm + matrices + width + 1
        return spec.n_layer // 2 * (self.skips + (self.baseline is not None)) * each


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model: sizes, features, one `LayerSpec` per layer, and what late layers borrow."""

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
    integration: IntegrationSpec | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_embd", "max_seq_len"):
            value = getattr(self, name)
            _require(_is_whole(value) and value > 0, f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("gated_mlp", "qkv_bias", "out_bias", "up_bias", "down_bias", "tied_head"):
            value = getattr(self, name)
            _require(isinstance(value, bool), f"{name} must be true or false, not {value!r}")
        _take_numbers(self, "norm_eps")
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
        if self.integration is not None:
            self.integration.check(self)

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

    def with_baseline_layers(self) -> ModelSpec:
        """The layers that keep keys and values: the model's own, then those of the baseline."""
        if self.integration is None or self.integration.baseline is None:
            return self
        return dataclasses.replace(self, layers=self.layers + self.integration.baseline.layers, integration=None)

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
    def weights_per_norm(self) -> int:
        """Weights of one norm."""
        return self.n_embd * (2 if self.norm == "layernorm" else 1)

    @property
    def norm_weights(self) -> int:
        """Weights of all norms: two per layer and the final one."""
        return (2 * self.n_layer + 1) * self.weights_per_norm

    @property
    def fusion_weights(self) -> int:
        """Weights that skips and baseline integration add, the baseline itself excluded."""
        return 0 if self.integration is None else self.integration.fusion_weights(self)

    def parameter_count(self, *, gates: bool = False, baseline: bool = True) -> int:
        """Number of parameters, as Hugging Face counts them (tied head once); ``gates`` adds one per head.

        ``baseline`` counts the frozen weights of the baseline too.
        """
        embeddings = self.vocab_size * self.n_embd * (1 if self.tied_head else 2)
        if self.positions == "learned":
            embeddings += self.max_seq_len * self.n_embd
        matrices = sum(self.layer_weights(layer) for layer in self.layers)
        own = embeddings + matrices + self.norm_weights + (self.n_head_total if gates else 0) + self.fusion_weights
        unpruned = self.integration.baseline if self.integration is not None and baseline else None
        return own if unpruned is None else own + unpruned.parameter_count(gates=gates)

    def _streamed_by_layers(self) -> int:
        """Weights read to take one token through the layers of the model and of its baseline."""
        layers = sum(self.layer_weights(layer) + 2 * self.weights_per_norm for layer in self.layers)
        rows = self.n_embd * (2 if self.positions == "learned" else 1)
        baseline = None if self.integration is None else self.integration.baseline
        return layers + rows + self.fusion_weights + (0 if baseline is None else baseline._streamed_by_layers())

    def streamed_weights_per_token(self) -> int:
        """Weights read from memory to decode one token at batch 1: every matrix once and one embedding row."""
        return self._streamed_by_layers() + self.weights_per_norm + self.vocab_size * self.n_embd

    def weight_bytes_per_token(self, bytes_per_weight: float = 4.0) -> int:
        """Bytes of weights streamed to decode one token at batch 1 (4 bytes a weight in fp32)."""
        return round(self.streamed_weights_per_token() * bytes_per_weight)

    def kv_bytes_per_position(self, bytes_per_value: float = 4.0) -> int:
        """Bytes that one cached position takes over all layers (keys and values)."""
        layers = self.with_baseline_layers().layers
        return round(sum(2 * layer.n_kv_head * layer.head_dim for layer in layers) * bytes_per_value)

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations to decode one token with ``context`` cached positions (2 per multiply-add)."""
        layers = self.with_baseline_layers().layers
        attention = sum(4 * layer.n_head * layer.head_dim * context for layer in layers)
        return 2 * self.streamed_weights_per_token() + attention

    # --- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a feature that the model does not have is left out, so that older versions read the rest."""
        data = {"spec_version": SPEC_VERSION, **dataclasses.asdict(self)}
        if self.integration is None:
            del data["integration"]
        elif self.integration.baseline is not None:
            data["integration"]["baseline"] = self.integration.baseline.to_dict()
        return data

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
        integration = data.pop("integration", None)
        if integration is not None:
            _require(isinstance(integration, dict), "model spec: 'integration' must be an object")
            baseline = integration.get("baseline")
            baseline = None if baseline is None else cls.from_dict(baseline)
            parsed["integration"] = _build(IntegrationSpec, {**integration, "baseline": baseline}, "integration")
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
