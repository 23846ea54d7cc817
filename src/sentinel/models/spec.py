"""What a model is made of: frozen, validated, written to and read from JSON.

Sizes use the field's names: ``n_layer``, ``n_head``, ``n_kv_head``, ``head_dim``, ``n_embd``, ``intermediate_size``,
``vocab_size``, ``max_seq_len``.
Layers may differ from each other; zero heads and zero neurons are allowed. The parts of a layer are in `layer_spec`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sentinel.errors import InputError
from sentinel.models.earlier_spec import as_version_2
from sentinel.models.layer_spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    RopeSpec,
    is_whole,
    require,
    require_flags,
    take_numbers,
)
from sentinel.plain import is_row

__all__ = ["AttentionSpec", "BlockSpec", "IntegrationSpec", "LayerSpec", "MlpSpec", "ModelSpec", "NormSpec", "RopeSpec"]

NormKind = Literal["layernorm", "rmsnorm"]

SPEC_VERSION = 2


@dataclass(frozen=True)
class NormSpec:
    """The normalisation of the model: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""

    kind: NormKind
    eps: float

    def __post_init__(self) -> None:
        require(self.kind in get_args(NormKind), f"norm {self.kind!r} is not supported")
        take_numbers(self, "eps")
        require(self.eps >= 0, f"the eps of a norm must not be negative, not {self.eps!r}")

    def weights(self, width: int) -> int:
        """Weights of one norm over ``width`` numbers."""
        return width * (2 if self.kind == "layernorm" else 1)


@dataclass(frozen=True)
class BlockSpec:
    """How the halves of a layer, attention and MLP, are joined to the residual stream; the same in all layers.

    pre_norm: a half reads the normed stream. post_norm: its output is normed before it is added. parallel: both halves
    read the stream that enters the layer; with shared_norm they read one norm of it. residual_scale multiplies what is
    added.
    """

    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        require_flags(self, "pre_norm", "post_norm", "parallel", "shared_norm")
        take_numbers(self, "residual_scale")
        require(self.residual_scale > 0, f"residual_scale must be above 0, not {self.residual_scale!r}")
        fits = not self.shared_norm or (self.parallel and self.pre_norm)
        require(fits, "a norm can be shared by parallel halves with a norm before them only")

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the norms of one layer."""
        pre = () if not self.pre_norm else ("attn_norm",) if self.shared_norm else ("attn_norm", "mlp_norm")
        return (*pre, *(("attn_post_norm", "mlp_post_norm") if self.post_norm else ()))


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
        require_flags(self, "skips")
        require(self.skips or self.baseline is not None, "an integration needs skips, a baseline, or both")
        require(
            self.rank is None or (is_whole(self.rank) and self.rank >= 1),
            f"the rank of an integration must be at least 1, not {self.rank!r}",
        )

    def check(self, spec: ModelSpec) -> None:
        """Raise `InputError` unless this fits the model ``spec``."""
        require(spec.n_layer >= 2, "an integration needs a model of at least two layers")
        require(
            self.rank is None or self.rank <= spec.n_embd,
            f"rank {self.rank} is above the model's width of {spec.n_embd}; take full rank",
        )
        other = self.baseline
        if other is None:
            return
        require(other.integration is None, "the baseline must be a plain model, without an integration of its own")
        require(
            other.n_layer == spec.n_layer - 1,
            f"the baseline has {other.n_layer + 1} layers, but the model {spec.n_layer}; they must be as many",
        )
        for name in ("n_embd", "vocab_size", "norm", "block", "learned_positions", "embed_scale"):
            ours, theirs = getattr(spec, name), getattr(other, name)
            require(ours == theirs, f"the baseline has {name} {theirs}, but the model {ours}; they must be the same")
        of_layers: dict[str, Callable[[LayerSpec], object]] = {
            "activation": lambda layer: layer.mlp.activation,
            "gated": lambda layer: layer.mlp.gated,
            "rope": lambda layer: layer.attention.rope,
        }
        for name, of in of_layers.items():
            ours, theirs = ({of(layer) for layer in model.layers} for model in (spec, other))
            require(theirs <= ours, f"the baseline has {name} {theirs}, but the model {ours}; they must be the same")
        require(
            other.max_seq_len >= spec.max_seq_len,
            f"the baseline's context of {other.max_seq_len} is shorter than the model's of {spec.max_seq_len}",
        )

    def fusion_weights(self, spec: ModelSpec) -> int:
        """Weights of all fusions: two norms, the matrices, a bias and a gate each."""
        width = spec.n_embd
        matrices = 2 * width * width if self.rank is None else 3 * width * self.rank
        each = 2 * spec.norm.weights(width) + matrices + width + 1
        return spec.n_layer // 2 * (self.skips + (self.baseline is not None)) * each


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model: sizes, features, one `LayerSpec` per layer, and what late layers borrow.

    learned_positions: an embedding of positions is added to that of tokens. embed_scale multiplies what the first layer
    reads (positions apart). head_bias: of the LM head. logit_scale multiplies the logits, and logit_soft_cap c makes them
    c * tanh(logits / c).
    """

    family: str
    vocab_size: int
    n_embd: int
    max_seq_len: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tied_head: bool
    learned_positions: bool = False
    block: BlockSpec = BlockSpec()
    head_bias: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    integration: IntegrationSpec | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_embd", "max_seq_len"):
            value = getattr(self, name)
            require(is_whole(value) and value > 0, f"{name} must be a whole number of at least 1, not {value!r}")
        require_flags(self, "tied_head", "learned_positions", "head_bias")
        take_numbers(self, "embed_scale", "logit_scale")
        if self.logit_soft_cap is not None:
            take_numbers(self, "logit_soft_cap")
        for name in ("embed_scale", "logit_scale", "logit_soft_cap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be above 0, not {value!r}")
        require(len(self.layers) > 0, "a model needs at least one layer")
        require(not (self.tied_head and self.head_bias), "an LM head that is the embedding has no bias")
        if self.integration is not None:
            self.integration.check(self)

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    @property
    def n_head_total(self) -> int:
        """Query heads in all layers."""
        return sum(layer.n_head for layer in self.layers)

    def with_baseline_layers(self) -> ModelSpec:
        """The layers that keep keys and values: the model's own, then those of the baseline."""
        if self.integration is None or self.integration.baseline is None:
            return self
        return dataclasses.replace(self, layers=self.layers + self.integration.baseline.layers, integration=None)

    # --- arithmetic -------------------------------------------------------------------------------------------------

    def layer_weights(self, layer: LayerSpec) -> int:
        """Weights of one layer: matrices, biases and norms (gates excluded)."""
        width, attention, mlp = self.n_embd, layer.attention, layer.mlp
        columns = attention.n_head * attention.head_dim
        total = attention.qkv_rows * (width + attention.qkv_bias) + width * columns + width * attention.out_bias
        if attention.qk_norm == "head":
            total += 2 * attention.head_dim
        elif attention.qk_norm == "whole":
            total += columns + attention.n_kv_head * attention.head_dim
        total += mlp.intermediate_size * ((1 + mlp.gated) * (width + mlp.up_bias) + width) + width * mlp.down_bias
        return total + len(self.block.norms) * self.norm.weights(width)

    @property
    def fusion_weights(self) -> int:
        """Weights that skips and baseline integration add, the baseline itself excluded."""
        return 0 if self.integration is None else self.integration.fusion_weights(self)

    def parameter_count(self, *, gates: bool = False, baseline: bool = True) -> int:
        """Number of parameters, as Hugging Face counts them (tied head once); ``gates`` adds one per head.

        ``baseline`` counts the frozen weights of the baseline too.
        """
        embeddings = self.vocab_size * self.n_embd * (1 if self.tied_head else 2)
        embeddings += self.learned_positions * self.max_seq_len * self.n_embd + self.head_bias * self.vocab_size
        layers = sum(self.layer_weights(layer) for layer in self.layers) + self.norm.weights(self.n_embd)
        own = embeddings + layers + (self.n_head_total if gates else 0) + self.fusion_weights
        unpruned = self.integration.baseline if self.integration is not None and baseline else None
        return own if unpruned is None else own + unpruned.parameter_count(gates=gates)

    def _streamed_by_layers(self) -> int:
        """Weights read to take one token through the layers of the model and of its baseline."""
        layers = sum(self.layer_weights(layer) for layer in self.layers)
        rows = self.n_embd * (1 + self.learned_positions)
        baseline = None if self.integration is None else self.integration.baseline
        return layers + rows + self.fusion_weights + (0 if baseline is None else baseline._streamed_by_layers())

    def streamed_weights_per_token(self) -> int:
        """Weights read from memory to decode one token at batch 1: every matrix once and one embedding row."""
        head = self.vocab_size * (self.n_embd + self.head_bias)
        return self._streamed_by_layers() + self.norm.weights(self.n_embd) + head

    def weight_bytes_per_token(self, bytes_per_weight: float = 4.0) -> int:
        """Bytes of weights streamed to decode one token at batch 1 (4 bytes a weight in fp32)."""
        return round(self.streamed_weights_per_token() * bytes_per_weight)

    @property
    def windows(self) -> tuple[int, ...]:
        """The attention windows of layers that keep keys and values, each once, smallest first."""
        windows = {layer.attention.window for layer in self.with_baseline_layers().layers if layer.n_kv_head}
        return tuple(sorted(window for window in windows if window is not None))

    def kv_bytes(self, room: int, bytes_per_value: float = 4.0) -> int:
        """Bytes of keys and values that a sequence of ``room`` tokens takes; of layers with a window, those they keep."""
        layers = (layer.attention for layer in self.with_baseline_layers().layers)
        return round(sum(2 * y.n_kv_head * y.head_dim * y.cached(room) for y in layers) * bytes_per_value)

    def kv_bytes_read(self, context: float, bytes_per_value: float = 4.0) -> int:
        """Bytes of keys and values that one token reads with ``context`` cached positions; a window bounds its layer."""
        layers = (layer.attention for layer in self.with_baseline_layers().layers)
        return round(sum(2 * y.n_kv_head * y.head_dim * y.seen(context) for y in layers) * bytes_per_value)

    def kv_bytes_per_position(self, bytes_per_value: float = 4.0) -> int:
        """Bytes that one cached position takes over all layers (keys and values), within every window."""
        return self.kv_bytes(1, bytes_per_value)

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations to decode one token with ``context`` cached positions (2 per multiply-add)."""
        layers = (layer.attention for layer in self.with_baseline_layers().layers)
        attention = sum(4 * y.n_head * y.head_dim * y.seen(context) for y in layers)
        return 2 * self.streamed_weights_per_token() + round(attention)

    # --- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is as by default is left out."""
        return {"spec_version": SPEC_VERSION, **_plain(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`, which also takes what version 1 wrote.

        Raises `InputError` for another version, and for unknown or missing fields, by name.
        """
        data = as_version_2(data)
        version = data.pop("spec_version", None)
        require(
            version == SPEC_VERSION,
            f"model spec has version {version!r}; this version of sentinel reads versions 1 and {SPEC_VERSION}",
        )
        layers = data.pop("layers", None)
        require(isinstance(layers, (list, tuple)), "model spec: 'layers' must be a list")
        data["layers"] = tuple(_layer(layer, f"layer {i}") for i, layer in enumerate(layers or ()))
        for name, part in (("norm", NormSpec), ("block", BlockSpec)):
            if name in data:
                data[name] = _build(part, data[name], name)
        integration = data.pop("integration", None)
        if integration is not None:
            require(isinstance(integration, dict), "model spec: 'integration' must be an object")
            baseline = integration.get("baseline")
            baseline = None if baseline is None else cls.from_dict(baseline)
            data["integration"] = _build(IntegrationSpec, {**integration, "baseline": baseline}, "integration")
        return _build(cls, data, "model spec")

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of `to_json`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"model spec is not valid JSON ({error})") from error
        require(isinstance(data, dict), "model spec must be a JSON object")
        return cls.from_dict(data)


def _plain(value: Any) -> Any:
    """Dictionaries and lists of plain values; a field that is as by default is left out."""
    if isinstance(value, ModelSpec) or not dataclasses.is_dataclass(value):
        if is_row(value):
            return [_plain(item) for item in value]
        if not isinstance(value, ModelSpec):
            return value
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.default is dataclasses.MISSING or item != field.default:
            found[field.name] = item.to_dict() if isinstance(item, ModelSpec) else _plain(item)
    return found


def _layer(data: Any, where: str) -> LayerSpec:
    require(isinstance(data, dict), f"{where}: expected an object, not {type(data).__name__}")
    parts = dict(data)
    if isinstance(parts.get("attention"), dict):
        attention = dict(parts["attention"])
        if attention.get("rope") is not None:
            attention["rope"] = _build(RopeSpec, attention["rope"], f"{where}: rope")
        parts["attention"] = _build(AttentionSpec, attention, f"{where}: attention")
    if isinstance(parts.get("mlp"), dict):
        parts["mlp"] = _build(MlpSpec, parts["mlp"], f"{where}: mlp")
    layer = _build(LayerSpec, parts, where)
    require(isinstance(layer.attention, AttentionSpec), f"{where}: attention must be an object")
    require(isinstance(layer.mlp, MlpSpec), f"{where}: mlp must be an object")
    return layer


def _build(cls: type[Any], data: Any, where: str) -> Any:
    """Make dataclass ``cls`` of exactly the fields in ``data``."""
    require(isinstance(data, dict), f"{where}: expected an object, not {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    unknown, missing = sorted(set(data) - set(fields)), sorted(required - set(data))
    require(not unknown, f"{where}: unknown field {', '.join(unknown)}")
    require(not missing, f"{where}: missing field {', '.join(missing)}")
    return cls(**data)
