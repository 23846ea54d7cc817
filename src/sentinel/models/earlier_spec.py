"""Specifications that version 1 wrote, with the features of all layers in flat fields. They are only read."""

from __future__ import annotations

from typing import Any

from sentinel.errors import InputError
from sentinel.plain import is_object, is_row

_LAYER = ("n_head", "n_kv_head", "head_dim", "intermediate_size")
_FEATURES = ("norm", "norm_eps", "positions", "rope", "activation", "gated_mlp")
_BIASES = ("qkv_bias", "out_bias", "up_bias", "down_bias")


def as_version_2(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` as version 2 would have written it; what is of another version is copied.

    Raises `InputError` for unknown or missing fields, by name.
    """
    if data.get("spec_version") != 1:
        return dict(data)
    left = dict(data)
    missing = sorted(name for name in (*_FEATURES, *_BIASES, "layers") if name not in left)
    if missing:
        raise InputError(f"model spec: missing field {', '.join(missing)}")
    norm, eps, positions, rope, activation, gated = (left.pop(name) for name in _FEATURES)
    qkv, out, up, down = (left.pop(name) for name in _BIASES)
    if (positions == "rope") != (rope is not None):
        raise InputError("rope settings are given when positions are 'rope'")
    if positions not in ("learned", "rope"):
        raise InputError(f"positions {positions!r} is not supported")
    layers: list[dict[str, Any]] = []
    for index, sizes in enumerate(_checked_layers(left.pop("layers"))):
        attention = {name: sizes[name] for name in _LAYER[:3]}
        mlp = {"intermediate_size": sizes["intermediate_size"], "activation": activation, "gated": gated}
        attention.update({"rope": rope, "qkv_bias": qkv, "out_bias": out})
        layers.append({"attention": attention, "mlp": {**mlp, "up_bias": up, "down_bias": down}})
        if set(sizes) != set(_LAYER):
            raise InputError(f"layer {index}: unknown field {', '.join(sorted(set(sizes) - set(_LAYER)))}")
    return {
        **left,
        "spec_version": 2,
        "layers": layers,
        "norm": {"kind": norm, "eps": eps},
        "learned_positions": positions == "learned",
    }


def _checked_layers(layers: Any) -> list[dict[str, Any]]:
    if not is_row(layers):
        raise InputError("model spec: 'layers' must be a list")
    for index, layer in enumerate(layers):
        if not is_object(layer):
            raise InputError(f"layer {index}: expected an object, not {type(layer).__name__}")
        if missing := sorted(set(_LAYER) - set(layer)):
            raise InputError(f"layer {index}: missing field {', '.join(missing)}")
    return list(layers)
