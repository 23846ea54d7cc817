"""Size of the weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sentinel.adapt.pruning.criterion import HalfCriterion
from sentinel.adapt.pruning.half_layer import HalfLayer
from sentinel.models.tensors import by_unit


class Magnitude(HalfCriterion):
    """Frobenius norm of all weights of a unit: its rows of the input projections and columns of the output projection."""

    name = "magnitude"
    needs_text = False

    def of_half(self, part: HalfLayer) -> NDArray[np.float64]:
        squares: torch.Tensor | float = 0.0
        for tensor in part.tensors:
            if tensor.unit is not None and tensor.name.endswith(".weight"):
                others = [axis for axis in range(3) if axis != tensor.axis]
                squares = squares + by_unit(part.state[tensor.name], tensor).square().sum(others)
        assert isinstance(squares, torch.Tensor)
        return squares.sqrt().cpu().double().numpy()
