"""A model run with gates that are given from outside, one per head group, so that they can be learned or probed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from sentinel.models.decoder import Decoder


class GatedModel:
    """``decoder`` with its weights frozen and each head's gate multiplied by that of its group.

    What the gates cost is the Kullback-Leibler divergence from a teacher, in nats per token.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._frozen = {name: tensor.detach() for name, tensor in decoder.named_parameters()}

    def ones(self) -> list[Tensor]:
        """Open gates [n_kv_head] for every layer."""
        return [torch.ones(layer.n_kv_head) for layer in self.decoder.spec.layers]

    def logits(self, gates: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """Logits [B, T, V] for ``tokens`` [B, T] with gates [n_kv_head] per layer; differentiable in the gates."""
        swapped = dict(self._frozen)
        for index, (gate, layer) in enumerate(zip(gates, self.decoder.spec.layers, strict=True)):
            name = f"layers.{index}.attn.gate"
            swapped[name] = swapped[name] * gate.repeat_interleave(layer.group_size)
        return functional_call(self.decoder, swapped, (tokens,))

    def divergence(self, gates: Sequence[Tensor], tokens: Tensor, teacher: Teacher) -> Tensor:
        """Mean divergence from the teacher's predictions over ``tokens`` [B, T]."""
        return kl_divergence(self.logits(gates, tokens), teacher.logits(tokens))


class Teacher:
    """Predictions of an unpruned model. States before the LM head are kept, so that a window is run once."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._states: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] for ``tokens`` [B, T]."""
        keys = [window.numpy().tobytes() for window in tokens]
        missing = [i for i, key in enumerate(keys) if key not in self._states]
        if missing:
            for i, states in zip(missing, self.decoder.hidden_states(tokens[missing]), strict=True):
                self._states[keys[i]] = states
        return self.decoder.logits(torch.stack([self._states[key] for key in keys]))


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits [..., V], the mean over positions (Hinton et al. 2015, temperature 1)."""
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    return functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )


def short_windows(windows: Tensor, length: int) -> Tensor:
    """``windows`` [W, T] cut into pieces of at most ``length`` tokens."""
    length = min(length, windows.shape[1])
    pieces = windows.shape[1] // length
    return windows[:, : pieces * length].reshape(-1, length)
