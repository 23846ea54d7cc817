"""Windows that some layers have: which, as configs tell it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sentinel.models.families.config import ConfigReader
from sentinel.models.spec import ModelSpec


def with_later_windows(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """Windows in the layers from ``max_window_layers`` on, if ``use_sliding_window`` says so; ``layer_types`` wins."""
    wanted = config.flag("use_sliding_window", False)
    window = config.optional_integer("sliding_window", 4096)
    first = config.natural("max_window_layers", 28)
    windowed = config.layer_types(spec.n_layer, lambda index: wanted and window is not None and index >= first)
    return with_windows(spec, windowed, window if wanted else None)


def with_windows(spec: ModelSpec, windowed: Sequence[bool], window: int | None) -> ModelSpec:
    """The model with that window in the layers that are named."""
    layers = tuple(
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=window if there else None))
        for layer, there in zip(spec.layers, windowed, strict=True)
    )
    return dataclasses.replace(spec, layers=layers)


def window_fields(spec: ModelSpec) -> dict[str, Any]:
    """What a config says of windows."""
    windows = [layer.attention.window for layer in spec.layers]
    used = next((window for window in windows if window is not None), None)
    if used is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": used, "layer_types": layer_types(windows)}


def layer_types(windows: Sequence[int | None]) -> list[str]:
    """The names of Hugging Face for layers with and without a window."""
    return ["full_attention" if window is None else "sliding_attention" for window in windows]
