"""How focused a head's attention is."""

from __future__ import annotations

import torch

from sentinel.adapt.pruning.criterion import ScoringCriterion
from sentinel.adapt.pruning.scores import Scores
from sentinel.adapt.pruning.subject import Subject


class Entropy(ScoringCriterion):
    """Heads whose attention is spread out go first; neurons are not scored (all the same)."""

    name = "entropy"
    scores_neurons = False

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        layers = subject.statistics.layers
        return Scores.of_tensors(
            self.name,
            [-layer.entropy for layer in layers],
            [torch.zeros_like(layer.neuron_fisher) for layer in layers],
        )
