"""What it costs to remove units of one projection together, when what is left is re-solved to make up for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sentinel.adapt.pruning.residual_stream import device_of_float64

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix


class JointRemoval:
    """The units of an output projection, blocks of ``unit`` of its inputs, while some of them are removed for good.

    ``inputs`` and ``gradients`` are [N, K]: what the projection reads, and the gradient of the loss there. The part of a
    unit that the others (and a constant) predict linearly costs nothing, since compensation brings it back. What counts is
    the residual r_t of that prediction, and the Fisher information of its effect on the loss: sum_t (g_t . r_t)^2.

    All residuals come from one inverse P of the Gram matrix: r = Z P[:, u] P[u, u]^-1. To remove a unit is a step of
    elimination in P, and moves the weights of the others, so that its gradient reaches them by the same coefficients (the
    optimal brain surgeon, Hassibi and Stork 1993, in blocks): two units that stand in for each other are not both free.
    """

    def __init__(self, inputs: Tensor, gradients: Tensor, unit: int, *, ridge: float = RIDGE) -> None:
        self._unit = unit
        self._z = torch.cat((inputs, inputs.new_ones(len(inputs), 1)), dim=1)
        self._gradients = gradients
        gram = (self._z.T @ self._z).to(device_of_float64(inputs.device)).double()
        scale = (
            gram.diagonal()[:-1].mean().clamp(min=torch.finfo(torch.float32).tiny)
        )  # inputs of a closed gate are all 0
        gram.diagonal().add_(scale * ridge)
        self._inverse = torch.linalg.inv(gram)
        self._left = torch.ones(inputs.shape[1] // unit, dtype=torch.bool, device=gram.device)

    def scores(self) -> Tensor:
        """What it costs to remove each unit beside those that are gone, float64 [K / unit]; infinite for the latter."""
        found = self._single() if self._unit == 1 else self._blocks()
        return found.masked_fill(~self._left, torch.inf)

    def remove(self, units: Sequence[int]) -> None:
        """Take these units away together."""
        gone = [unit * self._unit + k for unit in units for k in range(self._unit)]
        coefficients = self._inverse[:, gone] @ torch.linalg.inv(self._inverse[gone][:, gone])
        moved = coefficients[:-1].T.to(self._gradients)
        self._gradients = self._gradients - self._gradients[:, gone] @ moved
        self._inverse = self._inverse - coefficients @ self._inverse[gone]
        self._left[list(units)] = False

    def _single(self) -> Tensor:
        diagonal = torch.where(self._left, self._inverse.diagonal()[:-1], 1.0)
        residuals = self._z @ (self._inverse[:, :-1] / diagonal).to(self._z)
        return (residuals * self._gradients).square().sum(0).to(self._inverse)

    def _blocks(self) -> Tensor:
        found = torch.zeros(len(self._left), dtype=torch.float64, device=self._inverse.device)
        for index in self._left.nonzero()[:, 0].tolist():
            columns = slice(index * self._unit, (index + 1) * self._unit)
            prediction = self._inverse[:, columns] @ torch.linalg.inv(self._inverse[columns, columns])
            residual = self._z @ prediction.to(self._z)
            found[index] = (residual * self._gradients[:, columns]).sum(1).square().sum().to(found)
        return found
