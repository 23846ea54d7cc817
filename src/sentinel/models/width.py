"""How much of each layer is used (`Width`, counts), and which of it (`Kept`, indices)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec


@dataclass(frozen=True)
class Width:
    """Per layer, how many of the first key/value ``groups`` and ``neurons`` are used."""

    groups: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("groups", "neurons"):
            object.__setattr__(self, name, tuple(int(count) for count in getattr(self, name)))

    @classmethod
    def full(cls, spec: ModelSpec) -> Width:
        """All of every layer."""
        return cls(
            tuple(layer.n_kv_head for layer in spec.layers), tuple(layer.intermediate_size for layer in spec.layers)
        )

    def check(self, spec: ModelSpec) -> None:
        """Raise `InputError` for counts that the layers of ``spec`` do not have."""
        if len(self.groups) != spec.n_layer or len(self.neurons) != spec.n_layer:
            raise InputError(f"a width needs one count per layer, {spec.n_layer} of head groups and of neurons")
        for index, (layer, groups, neurons) in enumerate(zip(spec.layers, self.groups, self.neurons, strict=True)):
            if not (0 <= groups <= layer.n_kv_head and 0 <= neurons <= layer.intermediate_size):
                raise InputError(
                    f"layer {index} has {layer.n_kv_head} head groups and {layer.intermediate_size} neurons; "
                    f"{groups} and {neurons} can't be used"
                )

    @property
    def kept(self) -> Kept:
        """The numbers of what is used: the first of each layer."""
        return Kept([range(count) for count in self.groups], [range(count) for count in self.neurons])

    def of(self, spec: ModelSpec) -> ModelSpec:
        """The specification of a model that has only so much of each layer."""
        layers = tuple(
            dataclasses.replace(
                layer,
                attention=dataclasses.replace(layer.attention, n_head=g * layer.group_size, n_kv_head=g),
                mlp=dataclasses.replace(layer.mlp, intermediate_size=f),
            )
            for layer, g, f in zip(spec.layers, self.groups, self.neurons, strict=True)
        )
        return dataclasses.replace(spec, layers=layers)


@dataclass(frozen=True)
class Kept:
    """Numbers of the head ``groups`` and ``neurons`` of each layer that stay, in the order in which they are stored."""

    groups: Sequence[Sequence[int]]
    neurons: Sequence[Sequence[int]]

    @property
    def width(self) -> Width:
        """How many stay."""
        return Width(tuple(len(chosen) for chosen in self.groups), tuple(len(chosen) for chosen in self.neurons))


def with_own_groups(spec: ModelSpec) -> ModelSpec:
    """The same sizes with a key/value head for every query head."""
    layers = tuple(
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, n_kv_head=layer.n_head))
        for layer in spec.layers
    )
    return dataclasses.replace(spec, layers=layers)
