"""What an architecture of llama.cpp makes of a model: the model as the file holds it, its fields and its tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.families.weights import State
from sentinel.models.features import features
from sentinel.models.spec import ModelSpec, RopeSpec
from sentinel.plain import is_row

BIASES = ("qkv_bias", "out_bias", "up_bias", "down_bias")


@dataclass(frozen=True)
class Held:
    """A model as a file of the ``architecture`` holds it; the state computes what the model did.

    fields: of the architecture, without its name. extra: tensors that are no weights. tensors: name and values of every
    weight, in turn, for a state of ``spec``.
    """

    architecture: str
    spec: ModelSpec
    state: State
    fields: dict[str, Any]
    extra: dict[str, NDArray[np.float32]]
    tensors: Callable[[State], Iterator[tuple[str, Tensor]]]

    def names(self) -> list[str]:
        """Of all tensors of the file."""
        return [*(name for name, _ in self.shapes()), *self.extra]

    def shapes(self) -> Iterator[tuple[str, Tensor]]:
        """Name and shape of every weight, without values."""
        return self.tensors({name: tensor.to("meta") for name, tensor in self.state.items()})


def who(architecture: str) -> str:
    """How an architecture is called where it refuses a model."""
    return f"llama.cpp's architecture {architecture}"


def require_same(spec: ModelSpec, told: ModelSpec, architecture: str) -> None:
    """Raise `InputError` that names the first thing of ``spec`` that a file of the architecture can't tell.

    ``told`` is what a reader makes of the file. It may have more biases, which are zero.
    """
    prefix = f"{who(architecture)} can't do this model"
    if missing := sorted(features(spec) - features(told)):
        more = f" (nor {', '.join(missing[1:])})" if len(missing) > 1 else ""
        raise InputError(f"{prefix}: it does not support {missing[0]}{_where(missing[0], spec)}{more}")
    for name, ours, theirs in _differences(spec, told):
        raise InputError(f"{prefix}: it does not support {name} of {ours!r}, only of {theirs!r}")


def _where(feature: str, spec: ModelSpec) -> str:
    """The first layer with the feature, if not all have it."""
    there = [feature in features(dataclasses.replace(spec, layers=(layer,))) for layer in spec.layers]
    return f" in layer {there.index(True)}" if any(there) and not all(there) else ""


def _differences(spec: ModelSpec, told: ModelSpec) -> Iterator[tuple[str, object, object]]:
    yield from _fields(spec, told, "", {"family", "layers", "integration"})
    for index, (ours, theirs) in enumerate(zip(spec.layers, told.layers, strict=True)):
        place = f" in layer {index}"
        yield from _fields(ours.attention, theirs.attention, place, {*BIASES, "rope"})
        yield from _fields(ours.mlp, theirs.mlp, place, {*BIASES})
        for name in BIASES:
            part, other = (ours.attention, theirs.attention) if name in BIASES[:2] else (ours.mlp, theirs.mlp)
            if getattr(part, name) and not getattr(other, name):
                yield f"{name}{place}", True, False
        yield from _rope_differences(ours.attention.rope, theirs.attention.rope, place)


def _rope_differences(rope: RopeSpec | None, told: RopeSpec | None, place: str) -> Iterator[tuple[str, object, object]]:
    if rope is None or told is None:
        if rope != told:
            yield f"rotary positions{place}", rope is not None, told is not None
        return
    unused = {"original_max_seq_len"} if rope.type in ("default", "linear") else set[str]()
    yield from _fields(rope, told, f" of rotary positions{place}", unused)


def _fields(ours: Any, theirs: Any, place: str, left_out: set[str]) -> Iterator[tuple[str, object, object]]:
    for field in dataclasses.fields(ours):
        if field.name not in left_out:
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            if not _alike(a, b):
                yield f"{field.name}{place}", a, b


def _alike(a: Any, b: Any) -> bool:
    """Equal, but for what fp32 fields round."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        return not list(_fields(a, b, "", set()))
    if is_row(a) and is_row(b):
        return len(a) == len(b) and all(map(_alike, a, b))
    return bool(a == b)
