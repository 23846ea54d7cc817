"""Error of the layer's output after the rest is re-solved."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sentinel.adapt.pruning.criterion import ScoringCriterion
from sentinel.adapt.pruning.residual_stream import device_of_float64
from sentinel.adapt.pruning.scores import Scores
from sentinel.adapt.pruning.subject import Subject
from sentinel.progress import track

GRAM_RIDGE = 1e-4  # of the mean diagonal, so that inputs that are never active can be inverted


class Reconstruction(ScoringCriterion):
    """Greedy removal by the error that is left after the exact re-solve of the rest, from the Gram matrix.

    Removing block u of the output projection W and re-solving the others costs tr(W_u P_uu^-1 W_u'), P being the inverse
    Gram matrix (optimal brain surgeon, Hassibi and Stork 1993; per head as in OSSCAR, Meng et al. 2024). A unit's score
    is the layer's accumulated error when it goes, relative to the layer's output. Neurons are scored (else all the same)
    only where any will be removed, since they take by far the most time.
    """

    name = "reconstruction"

    def scores(self, subject: Subject, heads: float, neurons: float) -> Scores:
        dense, of_groups, of_neurons = subject.dense, [], []
        layers = list(zip(dense.blocks, dense.spec.layers, subject.statistics.layers, strict=True))
        for block, layer, found in track(layers, "Ranking by reconstruction", len(layers)):
            unit, count = layer.group_size * layer.head_dim, layer.intermediate_size
            out, down = block.attn.out_proj.weight.detach(), block.mlp.down_proj.weight.detach()
            of_groups.append(_greedy(found.attn_gram, out, unit, layer.n_kv_head))
            of_neurons.append(_greedy(found.mlp_gram, down, 1, count) if neurons > 0 else np.zeros(count))
        return Scores(self.name, tuple(of_groups), tuple(of_neurons))


def _greedy(gram: Tensor, weight: Tensor, unit: int, count: int) -> NDArray[np.float64]:
    scores = np.zeros(count)
    if count == 0:
        return scores
    size = len(gram)
    device = device_of_float64(gram.device)
    matrix = gram.to(device).double()
    matrix += torch.eye(size, dtype=torch.float64, device=device) * matrix.diagonal().mean() * GRAM_RIDGE
    w = weight.to(device).double().clone()
    output = float((w @ matrix * w).sum())
    inverse = torch.linalg.inv(matrix)
    alive = torch.ones(count, dtype=torch.bool, device=device)
    error = 0.0
    for _ in range(count):
        costs = _removal_costs(w, inverse, unit, count)
        costs[~alive] = torch.inf
        gone = int(costs.argmin())
        error += max(0.0, float(costs[gone]))
        scores[gone] = error / output
        columns = slice(gone * unit, (gone + 1) * unit)
        step = torch.linalg.solve(inverse[columns, columns], inverse[columns])
        w.addmm_(w[:, columns].clone(), step, alpha=-1)
        inverse.addmm_(inverse[:, columns].clone(), step, alpha=-1)
        inverse[columns, :], inverse[:, columns], w[:, columns] = 0.0, 0.0, 0.0
        inverse[columns, columns] = torch.eye(unit, dtype=torch.float64, device=device)
        alive[gone] = False
    return scores


def _removal_costs(w: Tensor, inverse: Tensor, unit: int, count: int) -> Tensor:
    """Error [count] of removing each block and re-solving the rest."""
    if unit == 1:
        return w.square().sum(0) / inverse.diagonal()
    blocks = torch.stack([inverse[i * unit : (i + 1) * unit, i * unit : (i + 1) * unit] for i in range(count)])
    parts = w.T.reshape(count, unit, -1)
    return (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))
