"""Error of the layer's output after the rest is re-solved."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sentinel.adapt.pruning.criterion import HalfCriterion
from sentinel.adapt.pruning.half_layer import HalfLayer
from sentinel.adapt.pruning.residual_stream import device_of_float64

GRAM_RIDGE = 1e-4  # of the mean diagonal, so that inputs that are never active can be inverted


class Reconstruction(HalfCriterion):
    """Greedy removal by the error that is left after the exact re-solve of the rest, from the Gram matrix.

    Removing block u of the output projection W and re-solving the others costs tr(W_u P_uu^-1 W_u'), P being the inverse
    Gram matrix (optimal brain surgeon, Hassibi and Stork 1993; per head as in OSSCAR, Meng et al. 2024). A unit's score
    is the layer's accumulated error when it goes, relative to the layer's output. Neurons are scored (else all the same)
    only where any will be removed, since they take by far the most time.
    """

    name = "reconstruction"

    unread = ("mlp",)

    def of_half(self, part: HalfLayer) -> NDArray[np.float64]:
        layer = part.spec.layers[part.index]
        assert part.gram is not None
        if part.half == "attn":
            return _greedy(part.gram, part.projection, layer.group_size * layer.head_dim, layer.n_kv_head)
        return _greedy(part.gram, part.projection, 1, layer.intermediate_size)


def _greedy(gram: Tensor, weight: Tensor, unit: int, count: int) -> NDArray[np.float64]:
    scores = np.zeros(count)
    if count == 0:
        return scores
    device = device_of_float64(gram.device)
    matrix = gram.to(device).double()
    matrix.diagonal().add_(matrix.diagonal().mean() * GRAM_RIDGE)
    w = weight.to(device).double().clone()
    output = float((w @ matrix * w).sum())
    inverse = torch.linalg.inv(matrix)
    del matrix
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
