"""Size of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sentinel.adapt.pruning.criterion import ScoringCriterion
from sentinel.adapt.pruning.scores import Scores
from sentinel.adapt.pruning.subject import Subject
from sentinel.models.tensors import Unit, by_unit, pruned_tensors


class Magnitude(ScoringCriterion):
    """Frobenius norm of all weights of a unit: its rows of the input projections and columns of the output projection."""

    name = "magnitude"
    needs_text = False

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        decoder = subject.dense
        state, layers = decoder.state_dict(), decoder.spec.layers
        squares: dict[Unit, list[Tensor]] = {
            "groups": [torch.zeros(layer.n_kv_head, device=decoder.device) for layer in layers],
            "neurons": [torch.zeros(layer.intermediate_size, device=decoder.device) for layer in layers],
        }
        for tensor in pruned_tensors(decoder.spec):
            if tensor.layer is not None and tensor.unit is not None and tensor.name.endswith(".weight"):
                others = [axis for axis in range(3) if axis != tensor.axis]
                squares[tensor.unit][tensor.layer] += by_unit(state[tensor.name], tensor).square().sum(others)
        groups, neurons_of = ([sums.sqrt() for sums in squares[unit]] for unit in ("groups", "neurons"))
        return Scores.of_tensors(self.name, groups, neurons_of)
