"""One set of weights, several pruning levels, switched at run time.

Heads and neurons are stored most important first, so that a level is a count per layer. The projections that were
re-solved for a level are kept per level; everything else is shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from typing_extensions import Self

from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.parts.linear import require_plain
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import prefix

# The projections, by their place in a block, that a level may have of its own.
LEVEL_TENSORS = ("attn.out_proj.weight", "attn.out_proj.bias", "mlp.down_proj.weight", "mlp.down_proj.bias")


@dataclass(frozen=True)
class PruningLevel:
    """Share of heads and neurons removed, what is kept per layer, and re-solved projections by name.

    ``projections`` is empty for a level that was not compensated; it then uses the prefixes of the dense ones.
    """

    heads: float
    neurons: float
    kept_groups: tuple[int, ...]
    kept_neurons: tuple[int, ...]
    projections: dict[str, Tensor]

    @property
    def key(self) -> tuple[float, float]:
        return (round(self.heads, 4), round(self.neurons, 4))


class ElasticDecoder(Decoder):
    """A decoder in nested order with stored pruning levels; level (0, 0) is the dense model and always there."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._levels: dict[tuple[float, float], PruningLevel] = {}
        self._dense: dict[str, Tensor | None] = {}
        self.current: PruningLevel | None = None

    @classmethod
    def from_ordered(cls, decoder: Decoder, levels: Iterable[PruningLevel]) -> ElasticDecoder:
        """Make ``decoder``, whose heads and neurons are already in nested order, elastic. Weights are shared."""
        elastic = cls.empty(decoder.spec)
        elastic.record = decoder.record
        elastic.load_state_dict(decoder.state_dict(), assign=True)
        elastic.store_levels(levels)
        return elastic.eval()

    def store_levels(self, levels: Iterable[PruningLevel]) -> None:
        """Let these levels, beside the dense one, be those that `set_level` knows. The dense level must be set."""
        dense = PruningLevel(
            0.0,
            0.0,
            tuple(layer.n_kv_head for layer in self.spec.layers),
            tuple(layer.intermediate_size for layer in self.spec.layers),
            {},
        )
        self._levels = {level.key: level for level in (dense, *levels)}
        self._dense = {name: getattr(module, part) for name, module, part in self._places()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert what `torch.nn.Module.to` does not see too: the projections of levels that are not set."""
        super()._apply(fn, recurse)
        for level in self._levels.values():
            for tensor in level.projections.values():
                tensor.data = fn(tensor.data)
        for tensor in self._dense.values():
            if tensor is not None:
                tensor.data = fn(tensor.data)
        return self

    def set_level(self, heads: float, neurons: float = 0.0) -> None:
        """Switch to a stored level, up or down. Nothing is copied; raises `InputError` for a level that is not stored."""
        level = self._levels.get((round(heads, 4), round(neurons, 4)))
        if level is None:
            stored = ", ".join(f"{h:g}/{n:g}" for h, n in sorted(self._levels))
            raise InputError(
                f"pruning level {heads:g} of heads and {neurons:g} of neurons is not stored; stored are {stored}"
            )
        for _, module, _ in self._places():
            require_plain(module)
        self.set_active(level.kept_groups, level.kept_neurons)
        self.current = level
        for name, module, part in self._places():
            tensor = level.projections.get(name) if level.projections else self._dense[name]
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=False)
            setattr(module, part, tensor)

    def own_projections(self, level: PruningLevel) -> dict[str, nn.Parameter]:
        """Weights and biases that belong to ``level`` alone, as parameters that it uses when it is set.

        A level that was stored without projections gets copies of its part of the dense ones, and biases.
        """
        made: dict[str, nn.Parameter] = {}
        counts = zip(self.blocks, level.kept_groups, level.kept_neurons, strict=True)
        for index, (block, groups, neurons) in enumerate(counts):
            kept = {"attn.out_proj": groups * block.attn.layer.group_size * block.attn.layer.head_dim}
            kept["mlp.down_proj"] = neurons
            for place, columns in kept.items():
                name = f"layers.{index}.{place}"
                weight = level.projections.get(f"{name}.weight")
                bias = level.projections.get(f"{name}.bias")
                if weight is None:
                    weight, bias = self._dense[f"{name}.weight"], self._dense[f"{name}.bias"]
                    assert weight is not None
                    weight = weight.detach()[:, :columns].clone()
                bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
                made[f"{name}.weight"], made[f"{name}.bias"] = nn.Parameter(weight.detach()), nn.Parameter(bias)
        level.projections.update(made)
        return made

    def _places(self) -> list[tuple[str, nn.Module, str]]:
        found: list[tuple[str, nn.Module, str]] = []
        for index, block in enumerate(self.blocks):
            for place in LEVEL_TENSORS:
                half, projection, part = place.split(".")
                found.append((f"layers.{index}.{place}", getattr(getattr(block, half), projection), part))
        return found

    @property
    def levels(self) -> list[PruningLevel]:
        """The stored levels, least pruned first."""
        return sorted(self._levels.values(), key=lambda level: level.key)

    @property
    def level_bytes(self) -> int:
        """Bytes of all re-solved projections."""
        return sum(t.nbytes for level in self._levels.values() for t in level.projections.values())


def dense_state(decoder: ElasticDecoder) -> dict[str, Tensor]:
    """State of the dense level, whatever level is set."""
    state = decoder.state_dict()
    for name, tensor in decoder._dense.items():
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor.detach()
    return state


def at_current_level(decoder: Decoder) -> Decoder:
    """A plain decoder of what takes part at the level that is set; ``decoder`` itself when it is not elastic."""
    level = decoder.current if isinstance(decoder, ElasticDecoder) else None
    if level is None or not (level.heads or level.neurons):
        return decoder
    spec = decoder.spec.with_counts(level.kept_groups, level.kept_neurons)
    used = prefix(decoder.state_dict(), decoder.spec, level.kept_groups, level.kept_neurons)
    state = {name: tensor.detach().clone() for name, tensor in used.items()}
    biases = {name.split(".", 2)[2] for name in state if name.startswith("layers.") and name.endswith(".bias")}
    spec = dataclasses.replace(spec, out_bias="attn.out_proj.bias" in biases, down_bias="mlp.down_proj.bias" in biases)
    smaller = Decoder.empty(spec)
    smaller.record = decoder.record
    smaller.load_state_dict(state, assign=True)
    return smaller.eval()


def at_width(decoder: Decoder, heads: float, neurons: float) -> Decoder:
    """A plain decoder of a stored width, or ``decoder`` at its dense one; `InputError` for a width that is not stored."""
    if not (heads or neurons) and not isinstance(decoder, ElasticDecoder):
        return decoder
    elastic = require_levels(decoder)
    elastic.set_level(heads, neurons)
    found = at_current_level(elastic)
    elastic.set_level(0.0, 0.0)
    return found


def require_levels(decoder: Decoder) -> ElasticDecoder:
    """``decoder``, if it is elastic; `InputError` otherwise."""
    if not isinstance(decoder, ElasticDecoder):
        raise InputError("this model stores no pruning levels; make some with 'sentinel prune --elastic'")
    return decoder
