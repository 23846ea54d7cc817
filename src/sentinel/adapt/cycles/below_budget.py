"""What goes first: plans that fall a little below a budget, so that something may grow back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sentinel.adapt.cycles.budget import Budget
from sentinel.adapt.cycles.masked import Head
from sentinel.adapt.pruning.plan import PruningPlan, RemovalOrder


def removed_uniformly(budget: Budget, groups: Sequence[int]) -> int:
    """Heads to remove to keep the budget when every layer gives its share."""
    total = sum(groups)
    for removed in range(total):
        if budget.allows([count - removed * count // total for count in groups]):
            return removed
    return total


def overshooting_plan(order: RemovalOrder, budget: Budget, extra: int) -> PruningPlan:
    """The weakest plan of ``order`` that keeps the budget, less ``extra`` heads; one head and the floors stay."""
    total = sum(len(ranks) for ranks in order.group_ranks)
    least = max(1, sum(min(budget.floor, len(ranks)) for ranks in order.group_ranks))
    removed = next(n for n in range(total + 1) if budget.allows(order.plan(n / total).width.groups))
    return order.plan(max(removed, min(removed + extra, total - least)) / total)


def least_important(scores: Sequence[Mapping[int, float]], count: int, floor: int) -> list[Head]:
    """The ``count`` heads of lowest score; every layer keeps ``floor`` of them, and the model one."""
    left = [len(layer) for layer in scores]
    gone: list[Head] = []
    ranked = sorted((value, Head(index, group)) for index, layer in enumerate(scores) for group, value in layer.items())
    for _, head in ranked:
        if len(gone) < count and left[head.layer] > floor and sum(left) > 1:
            left[head.layer] -= 1
            gone.append(head)
    return gone
