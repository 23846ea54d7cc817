"""Pruning from end to end: calibration text -> removal order -> plan -> compacted, compensated model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sentinel.adapt.pruning import criteria
from sentinel.adapt.pruning.compact import compact, in_nested_order
from sentinel.adapt.pruning.compensate import compensate
from sentinel.adapt.pruning.criterion import Criterion
from sentinel.adapt.pruning.plan import PruningPlan, RemovalOrder, check_ratio
from sentinel.adapt.pruning.scores import Scope, Scores
from sentinel.adapt.pruning.subject import CalibrationText, Subject
from sentinel.adapt.text.corpora import Windows
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import require_fp32
from sentinel.models.elastic import WIDTH_TENSORS, StoredWidth
from sentinel.models.record import Pruned
from sentinel.models.width import Width


@dataclass(frozen=True)
class PruningSettings:
    """How units are ranked and what replaces them.

    ``tokens`` is the amount of calibration text, half of it from each of two texts, and ``seed`` that of its sampling;
    ``floor_groups`` heads stay in every
    layer. ``statistics_file`` lets an interrupted calibration go on.
    """

    criterion: str = criteria.DEFAULT
    scope: Scope = "global"
    floor_groups: int = 0
    floor_neurons: int = 0
    compensate: bool = True
    tokens: int = 24_576
    seed: int = 0
    statistics_file: Path | None = None

    def __post_init__(self) -> None:
        if self.scope not in self.ranking.scopes:
            known = " or ".join(self.ranking.scopes)
            raise InputError(
                f"criterion {self.criterion} has no scope {self.scope!r}; take {known}, or another criterion"
            )

    @property
    def ranking(self) -> Criterion:
        """The criterion itself."""
        return criteria.criterion_named(self.criterion)

    @property
    def needs_text(self) -> bool:
        return self.compensate or self.ranking.needs_text


class Pruner:
    """Prunes one dense decoder to any number of ratios, with one calibration."""

    def __init__(self, dense: Decoder, settings: PruningSettings, windows: Windows | None) -> None:
        require_fp32(dense, "pruning")
        self.dense = dense
        self._text = None if windows is None else CalibrationText(dense, windows, settings.statistics_file)
        self.settings = self._possible(settings)

    def with_settings(self, settings: PruningSettings) -> Pruner:
        """The same model pruned in another way, by the same calibration, which is made only once for both."""
        other = copy.copy(self)
        other.settings = self._possible(settings)
        return other

    def with_compensation(self, compensate: bool) -> Pruner:
        """The same pruner with or without compensation."""
        return self.with_settings(replace(self.settings, compensate=compensate))

    def _possible(self, settings: PruningSettings) -> PruningSettings:
        if self._text is None and settings.needs_text:
            raise InputError(f"criterion {settings.criterion} and compensation need calibration text")
        return settings

    @property
    def windows(self) -> Windows | None:
        """The calibration windows, if there are any."""
        return None if self._text is None else self._text.windows

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The documents that calibration has seen."""
        return () if self.windows is None else self.windows.fingerprints

    @property
    def subject(self) -> Subject:
        """What the criterion works on."""
        settings = self.settings
        floors = (settings.floor_groups, settings.floor_neurons)
        return Subject(self.dense, self._text, settings.seed, settings.scope, *floors)

    def scores(self, heads: float, neurons: float = 0.0) -> Scores:
        """Importance of every unit for the removal of the ratios ``heads`` and ``neurons``.

        Raises `InputError` for a criterion that has no single score.
        """
        return self.settings.ranking.scores(self.subject, heads, neurons)

    def order(self, heads: float, neurons: float) -> RemovalOrder:
        """The removal order, good at least down to these ratios."""
        check_ratio("heads", heads)
        check_ratio("neurons", neurons)
        ranking = self.settings.ranking
        if heads > 0 and self.dense.spec.n_head_total == 0:
            raise InputError("this model has no attention heads to prune")
        if neurons > 0 and not any(layer.intermediate_size for layer in self.dense.spec.layers):
            raise InputError("this model has no MLP neurons to prune")
        if neurons > 0 and not ranking.scores_neurons:
            raise InputError(f"criterion {ranking.name} scores heads only; leave out --neurons or take another")
        return ranking.order(self.subject, heads, neurons)

    def apply(self, plans: Sequence[PruningPlan]) -> list[Decoder]:
        """A compacted decoder for each plan, compensated if the settings say so.

        Raises `InputError` for a plan of another model, and for one that leaves a layer less than the floors of the
        settings.
        """
        for plan in plans:
            plan.check(self.dense.spec)
            self._check_floors(plan)
        if not self.settings.compensate:
            return [compact(self.dense, plan) for plan in plans]
        assert self.windows is not None
        return compensate(self.dense, [plan.kept for plan in plans], self.windows.tokens)

    def step(
        self,
        source: str,
        order: RemovalOrder,
        plans: Sequence[PruningPlan],
        *,
        texts: str,
        elastic: bool = False,
        expanded_kv: bool = False,
    ) -> Pruned:
        """What the record of the pruned model says: made of ``source``, calibrated on ``texts``."""
        return Pruned(
            source=source,
            texts=texts if self.windows is not None else "",
            documents=self.fingerprints,
            own_text={} if self.windows is None else dict(self.windows.own_text),
            criterion=order.criterion,
            heads=tuple(plan.heads for plan in plans),
            neurons=tuple(plan.neurons for plan in plans),
            compensated=self.settings.compensate,
            tokens=0 if self.windows is None else self.windows.tokens.numel(),
            removal_ranks=tuple(tuple(int(rank) for rank in layer) for layer in order.group_ranks),
            elastic=elastic,
            expanded_kv=expanded_kv,
        )

    def _check_floors(self, plan: PruningPlan) -> None:
        settings, whole, left = self.settings, Width.full(self.dense.spec), plan.width
        for what, ratio, floor, all_of_them, kept in (
            ("heads", plan.heads, settings.floor_groups, whole.groups, left.groups),
            ("neurons", plan.neurons, settings.floor_neurons, whole.neurons, left.neurons),
        ):
            if any(count < min(floor, most) for count, most in zip(kept, all_of_them, strict=True)):
                raise InputError(
                    f"{ratio:.0%} of {what} can't be removed when every layer keeps {floor}; lower --{what} or "
                    f"--floor-{what}"
                )


def make_elastic(
    dense: Decoder, order: RemovalOrder, plans: Sequence[PruningPlan], models: Sequence[Decoder]
) -> Decoder:
    """One elastic decoder whose stored widths are the pruned ``models`` of ``plans``, all of one removal order."""
    widths = []
    for plan, model in zip(plans, models, strict=True):
        state = model.state_dict()
        names = [f"layers.{i}.{place}" for i in range(model.spec.n_layer) for place in WIDTH_TENSORS]
        projections = {name: state[name].detach() for name in names if name in state}
        widths.append(StoredWidth(plan.heads, plan.neurons, plan.width, projections))
    elastic = in_nested_order(dense, order)
    elastic.store_widths(widths)
    return elastic
