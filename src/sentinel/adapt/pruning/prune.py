"""Pruning from end to end: calibration text -> removal order -> plan -> compacted, compensated model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sentinel.adapt.pruning.calibrate import Calibration, calibrate
from sentinel.adapt.pruning.compact import compact, in_nested_order
from sentinel.adapt.pruning.compensate import compensate
from sentinel.adapt.pruning.criteria import CRITERIA
from sentinel.adapt.pruning.learned_gates import CRITERION as LEARNED
from sentinel.adapt.pruning.learned_gates import learn_gates
from sentinel.adapt.pruning.plan import PruningPlan, RemovalOrder, Scope, Scores, check_ratio, removal_order
from sentinel.adapt.pruning.stepwise import CRITERION as STEPWISE
from sentinel.adapt.pruning.stepwise import stepwise_order
from sentinel.adapt.text.corpora import Text, Windows, sample_windows
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.elastic import LEVEL_TENSORS, ElasticDecoder, PruningLevel
from sentinel.models.record import Pruned
from sentinel.models.token_text import check_ids
from sentinel.models.tokenizer import TextTokenizer

CRITERION_NAMES = (STEPWISE, LEARNED, *CRITERIA)
WINDOW = 512


def scores_neurons(criterion: str) -> bool:
    """True when that criterion ranks neurons as well as heads."""
    return criterion == STEPWISE or (criterion in CRITERIA and CRITERIA[criterion].scores_neurons)


@dataclass(frozen=True)
class Settings:
    """How units are ranked and what replaces them.

    ``tokens`` is the amount of calibration text, half of it from each of two texts; ``floor_groups`` heads stay in every
    layer. ``statistics_file`` lets an interrupted calibration go on.
    """

    criterion: str = STEPWISE
    scope: Scope = "global"
    floor_groups: int = 0
    floor_neurons: int = 0
    compensate: bool = True
    tokens: int = 24_576
    seed: int = 0
    statistics_file: Path | None = None

    def __post_init__(self) -> None:
        if self.criterion not in CRITERION_NAMES:
            raise InputError(
                f"criterion {self.criterion!r} is not known; the criteria are {', '.join(CRITERION_NAMES)}"
            )

    @property
    def needs_text(self) -> bool:
        return self.compensate or self.criterion in (STEPWISE, LEARNED) or CRITERIA[self.criterion].needs_calibration


class Pruner:
    """Prunes one dense decoder to any number of ratios, with one calibration."""

    def __init__(self, dense: Decoder, settings: Settings, windows: Windows | None) -> None:
        if windows is None and settings.needs_text:
            raise InputError(f"criterion {settings.criterion} and compensation need calibration text")
        if windows is not None:
            check_ids(int(windows.tokens.max()), dense.spec.vocab_size)
        self.dense, self.settings, self.windows = dense, settings, windows
        self._calibration: Calibration | None = None

    @classmethod
    def from_texts(
        cls, dense: Decoder, tokenizer: TextTokenizer, texts: Callable[[], Sequence[Text]], settings: Settings
    ) -> Pruner:
        """Sample the calibration windows from ``texts``, which are loaded only when they are needed."""
        windows = None
        if settings.needs_text:
            length = min(WINDOW, dense.spec.max_seq_len)
            windows = sample_windows(texts(), tokenizer, settings.tokens, length, settings.seed)
        return cls(dense, settings, windows)

    def with_compensation(self, compensate: bool) -> Pruner:
        """The same pruner with or without compensation."""
        return Pruner(self.dense, replace(self.settings, compensate=compensate), self.windows)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The documents that calibration has seen."""
        return () if self.windows is None else self.windows.fingerprints

    @property
    def has_calibration(self) -> bool:
        """True once statistics were gathered."""
        return self._calibration is not None

    def share_calibration(self, other: Pruner | None) -> None:
        """Use the statistics that another pruner of the same model and windows has gathered."""
        if other is not None and other.dense is self.dense and other.windows is self.windows:
            self._calibration = other._calibration

    def scores(self, heads: float, neurons: float = 0.0) -> Scores:
        """Importance by the criterion of the settings (not for "stepwise", which has no single score). ``heads`` and
        ``neurons`` are the ratios to be removed: learned gates are trained for them, and what stays whole may go unscored.
        """
        if self.settings.criterion == LEARNED:
            assert self.windows is not None
            return learn_gates(self.dense, self.windows.tokens, closed=heads, seed=self.settings.seed)
        criterion = CRITERIA[self.settings.criterion]
        if criterion.needs_calibration and self._calibration is None:
            assert self.windows is not None
            self._calibration = calibrate(self.dense, self.windows, self.settings.statistics_file)
        return criterion.scores(self.dense, self._calibration, self.settings.seed, neurons > 0)

    def order(self, heads: float, neurons: float) -> RemovalOrder:
        """The removal order, good at least down to these ratios."""
        check_ratio("heads", heads)
        check_ratio("neurons", neurons)
        settings = self.settings
        if heads > 0 and self.dense.spec.n_head_total == 0:
            raise InputError("this model has no attention heads to prune")
        if neurons > 0 and not any(layer.intermediate_size for layer in self.dense.spec.layers):
            raise InputError("this model has no MLP neurons to prune")
        if settings.criterion == STEPWISE:
            assert self.windows is not None
            return stepwise_order(
                self.dense,
                self.windows.tokens,
                heads=heads,
                neurons=neurons,
                floor_groups=settings.floor_groups,
                floor_neurons=settings.floor_neurons,
                seed=settings.seed,
            )
        if neurons > 0 and not scores_neurons(settings.criterion):
            raise InputError(f"criterion {settings.criterion} scores heads only; leave out --neurons or take another")
        return removal_order(
            self.dense.spec,
            self.scores(heads, neurons),
            scope=settings.scope,
            floor_groups=settings.floor_groups,
            floor_neurons=settings.floor_neurons,
        )

    def apply(self, plans: Sequence[PruningPlan]) -> list[Decoder]:
        """A compacted decoder for each plan, compensated if the settings say so.

        Raises `InputError` for a plan that leaves a layer less than the floors of the settings.
        """
        for plan in plans:
            self._check_floors(plan)
        if not self.settings.compensate:
            return [compact(self.dense, plan) for plan in plans]
        assert self.windows is not None
        return compensate(self.dense, plans, self.windows.tokens)

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
        layers = self.dense.spec.layers
        for what, ratio, floor, kept, whole in (
            ("heads", plan.heads, self.settings.floor_groups, plan.group_counts, [la.n_kv_head for la in layers]),
            (
                "neurons",
                plan.neurons,
                self.settings.floor_neurons,
                plan.neuron_counts,
                [la.intermediate_size for la in layers],
            ),
        ):
            if any(count < min(floor, all_of_it) for count, all_of_it in zip(kept, whole, strict=True)):
                raise InputError(
                    f"{ratio:.0%} of {what} can't be removed when every layer keeps {floor}; lower --{what} or "
                    f"--floor-{what}"
                )


def make_elastic(
    dense: Decoder, order: RemovalOrder, plans: Sequence[PruningPlan], models: Sequence[Decoder]
) -> ElasticDecoder:
    """One elastic decoder whose stored levels are the pruned ``models`` of ``plans``, all of one removal order."""
    levels = []
    for plan, model in zip(plans, models, strict=True):
        state = model.state_dict()
        names = [f"layers.{i}.{place}" for i in range(model.spec.n_layer) for place in LEVEL_TENSORS]
        projections = {name: state[name].detach() for name in names if name in state}
        levels.append(PruningLevel(plan.heads, plan.neurons, plan.group_counts, plan.neuron_counts, projections))
    return ElasticDecoder.from_ordered(in_nested_order(dense, order), levels)
