"""What every importance criterion is: something that orders the units of a model for removal.

A unit is a neuron or a head group: a key/value head with its query heads; in plain multi-head attention, one head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from sentinel.adapt.pruning.half_layer import HalfLayer
from sentinel.adapt.pruning.plan import RemovalOrder
from sentinel.adapt.pruning.residual_stream import HALVES
from sentinel.adapt.pruning.scores import Scope, Scores, removal_order
from sentinel.adapt.pruning.subject import Subject
from sentinel.errors import InputError
from sentinel.models.parts.block import Half
from sentinel.progress import track


class Criterion(ABC):
    """``needs_text`` tells whether it calibrates, ``scores_neurons`` whether it ranks neurons as well as heads, ``scopes``
    which scopes it knows."""

    name: ClassVar[str]
    needs_text: ClassVar[bool] = True
    scores_neurons: ClassVar[bool] = True
    scopes: ClassVar[tuple[Scope, ...]] = get_args(Scope)

    @abstractmethod
    def order(self, subject: Subject, heads: float, neurons: float) -> RemovalOrder:
        """The removal order, good at least down to the ratios ``heads`` and ``neurons``."""

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        """The importance of every unit; `InputError` by a criterion that has no single score."""
        raise InputError(f"criterion {self.name} has no single score of a head; ask for its removal order")


class ScoringCriterion(Criterion):
    """A criterion that scores every unit once; the lowest scores go first."""

    @abstractmethod
    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        """The importance of every unit. ``heads`` and ``neurons`` are the ratios that will be removed at most: neurons may
        go unscored (all the same) where none are."""

    def order(self, subject: Subject, heads: float, neurons: float) -> RemovalOrder:
        return removal_order(
            subject.dense.spec,
            self.scores(subject, heads, neurons),
            scope=subject.scope,
            floor_groups=subject.floor_groups,
            floor_neurons=subject.floor_neurons,
        )


class HalfCriterion(ScoringCriterion):
    """A criterion that scores the units of a half layer by its weights, and by what its output projection reads on text.

    It needs no gradients, so that it also ranks a model of which one half layer at a time is in memory. Halves that are
    ``unread`` take long: they are scored (else all the same) only where any of their units will be removed.
    """

    unread: ClassVar[tuple[Half, ...]] = ()

    @abstractmethod
    def of_half(self, part: HalfLayer) -> NDArray[np.float64]:
        """The importance of the units of one half layer. Its ``gram`` is there if the criterion needs text."""

    def reads(self, half: Half, heads: float, neurons: float) -> bool:
        """Whether that half of each layer is scored when these ratios will be removed at most."""
        return half not in self.unread or (heads if half == "attn" else neurons) > 0

    def gathered(self, parts: Iterable[HalfLayer], heads: float, neurons: float) -> Scores:
        """The scores of a model of whose layers, in order, ``parts`` are the halves."""
        found: dict[Half, list[NDArray[np.float64]]] = {"attn": [], "mlp": []}
        for part in parts:
            scored = self.reads(part.half, heads, neurons) and part.units > 0
            found[part.half].append(self.of_half(part) if scored else np.zeros(part.units))
        return Scores(self.name, tuple(found["attn"]), tuple(found["mlp"]))

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        dense = subject.dense
        state = {name: tensor.detach() for name, tensor in dense.state_dict().items()}
        layers = subject.statistics.layers if self.needs_text else [None] * dense.spec.n_layer

        def parts() -> Iterable[HalfLayer]:
            for index, found in track(enumerate(layers), f"Ranking by {self.name}", len(layers)):
                for half in HALVES:
                    gram = None if found is None else found.attn_gram if half == "attn" else found.mlp_gram
                    yield HalfLayer(dense.spec, index, half, state, gram, subject.seed)

        return self.gathered(parts(), heads, neurons)
