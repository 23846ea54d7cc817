"""What the gradient of the loss by a unit's gate says of its removal."""

from __future__ import annotations

from sentinel.adapt.pruning.criterion import ScoringCriterion
from sentinel.adapt.pruning.scores import Scores
from sentinel.adapt.pruning.subject import Subject


class Gradient(ScoringCriterion):
    """Mean absolute gradient of the loss by a unit's gate (Michel et al. 2019, "Are Sixteen Heads Really Better than
    One?", eq. 2)."""

    name = "gradient"

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        found = subject.statistics
        groups = [layer.group_gradient for layer in found.layers]
        of_neurons = [layer.neuron_gradient for layer in found.layers]
        return Scores.of_tensors(self.name, groups, of_neurons, over=found.tokens, are_losses=True)


class Fisher(ScoringCriterion):
    """Mean squared gradient by a unit's gate: the diagonal of the empirical Fisher information (Kwon et al. 2022, "A Fast
    Post-Training Pruning Framework for Transformers")."""

    name = "fisher"

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        found = subject.statistics
        groups = [layer.group_fisher for layer in found.layers]
        of_neurons = [layer.neuron_fisher for layer in found.layers]
        return Scores.of_tensors(self.name, groups, of_neurons, over=found.tokens, are_losses=True)
