"""What every importance criterion is: something that orders the units of a model for removal.

A unit is a neuron or a head group: a key/value head with its query heads; in plain multi-head attention, one head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, get_args

from sentinel.adapt.pruning.plan import RemovalOrder
from sentinel.adapt.pruning.scores import Scope, Scores, removal_order
from sentinel.adapt.pruning.subject import Subject
from sentinel.errors import InputError


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
