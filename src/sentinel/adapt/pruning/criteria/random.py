"""Chance: what a criterion has to beat."""

from __future__ import annotations

import numpy as np

from sentinel.adapt.pruning.criterion import ScoringCriterion
from sentinel.adapt.pruning.scores import Scores
from sentinel.adapt.pruning.subject import Subject


class Random(ScoringCriterion):
    """Uniform noise."""

    name = "random"
    needs_text = False

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        rng = np.random.default_rng(subject.seed)
        layers = subject.dense.spec.layers
        return Scores(
            self.name,
            tuple(rng.random(layer.n_kv_head) for layer in layers),
            tuple(rng.random(layer.intermediate_size) for layer in layers),
        )
