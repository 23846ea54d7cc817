"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sentinel.models.spec import ModelSpec


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).

    A weight in fp32 beside narrower ``x`` is applied in fp32, and the result is rounded.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., n]; of a narrower ``x`` than the norm was made for, the first weights are used."""
        weight = self.weight[: x.shape[-1]]
        if weight.dtype != x.dtype and weight.dtype == torch.float32:
            return functional.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)
        return functional.rms_norm(x, weight.shape, weight, self.eps)


def make_norm(spec: ModelSpec) -> nn.Module:
    """The normalisation layer that the specification names, over n_embd features."""
    if spec.norm.kind == "layernorm":
        return nn.LayerNorm(spec.n_embd, eps=spec.norm.eps)
    return RMSNorm(spec.n_embd, spec.norm.eps)
