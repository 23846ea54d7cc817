"""What a model may cost, as a number of head groups per layer: their share, megabytes of weights, or decode time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

Unit = Literal["heads", "MB", "ms"]
_FORMS = "give megabytes of fp32 weights (400MB), a speed-up (1.3x), or the share of heads that stay (0.5)"


@dataclass(frozen=True)
class CostTable:
    """Cost by the number of head groups in each layer: ``fixed`` and ``layers[layer][groups]``, which never falls."""

    fixed: float
    layers: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rising = tuple(tuple(max(layer[: g + 1]) for g in range(len(layer))) for layer in self.layers)
        object.__setattr__(self, "layers", rising)  # measured times may fall by chance, and a budget may not

    def of(self, counts: Sequence[int]) -> float:
        """Cost with that many head groups per layer."""
        return self.fixed + sum(layer[count] for layer, count in zip(self.layers, counts, strict=True))


def costs_by_layer(spec: ModelSpec, cost: Callable[[Sequence[int]], float]) -> CostTable:
    """The table of a ``cost`` that takes the number of head groups of each layer, and in which layers add up."""

    def alone(layer: int, groups: int) -> float:
        return cost([groups if index == layer else 0 for index in range(spec.n_layer)])

    fixed = alone(0, 0)
    layers = [[alone(i, g) - fixed for g in range(la.n_kv_head + 1)] for i, la in enumerate(spec.layers)]
    return CostTable(fixed, tuple(map(tuple, layers)))


def share_costs(spec: ModelSpec) -> CostTable:
    """Share of all head groups."""
    total = max(1, sum(layer.n_kv_head for layer in spec.layers))
    return CostTable(0.0, tuple(tuple(g / total for g in range(layer.n_kv_head + 1)) for layer in spec.layers))


def size_costs(spec: ModelSpec) -> CostTable:
    """Megabytes (10^6 bytes) of fp32 weights."""
    neurons = Width.full(spec).neurons
    return costs_by_layer(spec, lambda counts: Width(tuple(counts), neurons).of(spec).parameter_count() * 4 / 1e6)


@dataclass(frozen=True)
class Budget:
    """At most ``limit`` of ``costs``; ``text`` is how it was asked for. Every layer keeps ``floor`` head groups."""

    text: str
    unit: Unit
    costs: CostTable
    limit: float
    floor: int = 0

    def allows(self, counts: Sequence[int]) -> bool:
        """True when a model with that many head groups per layer keeps the budget."""
        return self.costs.of(counts) <= self.limit * (1 + 1e-9)


def budget_unit(text: str) -> Unit:
    """What kind of budget ``text`` asks for. Raises `InputError` for an unknown one."""
    return _parse(text)[1]


def make_budget(
    text: str, costs: dict[Unit, CostTable], floor: int = 0, *, whole: Mapping[Unit, float] | None = None
) -> Budget:
    """The budget that ``text`` asks for, with the costs of its unit out of ``costs``. ``whole`` are the costs of the model
    as loaded, which budgets are told against: by default those of all heads, from which it differs where K/V are repeated.

    Raises `InputError` when it is unknown, leaves nothing to remove, or can't be reached with ``floor`` heads in every
    layer and at least one in the model.
    """
    value, unit = _parse(text)
    table = costs[unit]
    most = [len(layer) - 1 for layer in table.layers]
    if not sum(most):
        raise InputError("this model has no attention heads to adapt")
    dense = (whole or {}).get(unit, table.of(most))
    limit = dense / value if unit == "ms" else value
    budget = Budget(text, unit, table, limit, floor)
    least = [min(floor, count) for count in most]
    if not any(least):
        least[next(index for index, count in enumerate(most) if count)] = 1
    if limit >= dense * (1 - 1e-9):
        raise InputError(f"the budget {text} is not below the unpruned model's {_cost(dense, unit)}; ask for less")
    if not budget.allows(least):
        reached = f"{dense / table.of(least):.2f}x" if unit == "ms" else _cost(table.of(least), unit)
        raise InputError(
            f"the budget {text} is below the floor, {reached} with {sum(least)} heads left; heads are all that is removed"
        )
    return budget


def _parse(text: str) -> tuple[float, Unit]:
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zA-Z]*)\s*", text)
    units: dict[str, tuple[float, Unit]] = {"": (1.0, "heads"), "mb": (1.0, "MB"), "gb": (1e3, "MB"), "x": (1.0, "ms")}
    if found is None or found[2].lower() not in units:
        raise InputError(f"the budget {text!r} is not understood; {_FORMS}")
    factor, unit = units[found[2].lower()]
    value = float(found[1]) * factor
    if value <= 0 or (unit == "ms" and value <= 1) or (unit == "heads" and value >= 1):
        raise InputError(
            f"the budget {text!r} is out of range: a share is between 0 and 1, a speed-up above 1x, a size above 0MB"
        )
    return value, unit


def _cost(value: float, unit: Unit) -> str:
    return f"{value:.0%} of heads" if unit == "heads" else f"{value:.1f} {unit}"
