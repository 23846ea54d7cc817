"""The choice of the next token where the logits are: what `Sampler` chooses, without a way back to the host."""

from __future__ import annotations

import torch
from torch import Tensor

from sentinel.infer.sampling import SamplingSettings


def chosen_tokens(logits: Tensor, settings: SamplingSettings, numbers: Tensor) -> Tensor:
    """Tokens [rows] that ``numbers`` [rows] in [0, 1) draw from ``logits`` [rows, V]; at temperature 0 the likeliest.

    The distribution and the draw are those of `token_probabilities` and of NumPy's ``choice``: the first token whose
    cumulated probability is above the number. Probabilities are in the type of ``numbers``.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    cumulated = _probabilities(logits.to(numbers.dtype), settings).cumsum(-1)
    cumulated = cumulated / cumulated[:, -1:]
    return torch.searchsorted(cumulated, numbers[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _probabilities(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Probabilities [rows, V] after temperature, top-k, top-p and min-p, in that order."""
    scaled = (logits - logits.amax(-1, keepdim=True)) / settings.temperature
    if 0 < settings.top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(settings.top_k).values[:, -1:], -torch.inf)
    probabilities = scaled.softmax(-1)
    if settings.top_p < 1:
        ordered, places = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        kept = ordered.cumsum(-1) - ordered < settings.top_p  # the first token is always kept
        probabilities = _normalised(torch.zeros_like(ordered).scatter(-1, places, ordered * kept))
    if settings.min_p > 0:
        least = settings.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = _normalised(probabilities * (probabilities >= least))
    return probabilities


def _normalised(probabilities: Tensor) -> Tensor:
    return probabilities / probabilities.sum(-1, keepdim=True)
