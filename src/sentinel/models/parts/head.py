"""The LM head, as a function of normalised final states. Shape letters: N positions, C width, V vocabulary."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Head:
    """Logits cap * tanh(z / cap) with z = scale * (weight [V, C] x + bias [V]); without a ``cap``, z itself."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, states: Tensor) -> Tensor:
        """Logits [N, V] in fp32 of ``states`` [N, C]."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return self.finished(functional.linear(states.to(self.weight.dtype), self.weight, bias).float())

    def finished(self, logits: Tensor) -> Tensor:
        """``logits`` of the matrix and its bias, scaled and capped."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """By what a change of the matrix's outputs changes ``logits`` [N, V], apart from the scale; None for 1."""
        return None if self.cap is None else 1 - (logits / self.cap).square()

    def gradient(self, at_logits: Tensor, slope: Tensor | None) -> Tensor:
        """The gradient at the states [N, C], for that at the logits [N, V] where they have this `slope`."""
        if slope is not None:
            at_logits = at_logits * slope
        found = at_logits.to(self.weight.dtype) @ self.weight
        return found if self.scale == 1.0 else found * self.scale

    def to(self, dtype: torch.dtype) -> Head:
        """The same with its matrix of that type."""
        return dataclasses.replace(self, weight=self.weight.to(dtype))
