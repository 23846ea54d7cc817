"""A model run with gates that are given from outside, one per head group, so that they can be learned or probed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sentinel.adapt.recovery.distillation import divergence
from sentinel.adapt.recovery.teacher import Teacher
from sentinel.models.decoder import Decoder


class GatedModel:
    """``decoder`` with its weights frozen and each head's gate multiplied by that of its group.

    What the gates cost is the divergence from ``teacher`` in nats a token, over its windows.
    """

    def __init__(self, decoder: Decoder, teacher: Teacher) -> None:
        self.decoder, self.teacher = decoder, teacher
        self._states = _FinalStates(decoder)
        self._frozen = {name: tensor.detach() for name, tensor in self._states.named_parameters()}

    def divergence(self, gates: Sequence[Tensor], windows: Sequence[int]) -> Tensor:
        """Mean divergence over windows of the teacher, by their numbers, with ``gates`` [n_kv_head] per layer;
        differentiable in the gates."""
        swapped = dict(self._frozen)
        for index, (gate, layer) in enumerate(zip(gates, self.decoder.spec.layers, strict=True)):
            name = f"decoder.layers.{index}.attn.gate"
            swapped[name] = swapped[name] * gate.repeat_interleave(layer.group_size)
        tokens = self.teacher.windows[list(windows), :-1]
        states = functional_call(self._states, swapped, (tokens,)).flatten(0, 1)
        return divergence(states, self.decoder.head, self.teacher.targets(windows), self.teacher.temperature)


class _FinalStates(nn.Module):
    """Normalised states [B, T, C] that the LM head reads."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder.final_norm(self.decoder.hidden_states(tokens))


def short_windows(windows: Tensor, length: int) -> Tensor:
    """``windows`` [W, T] cut into pieces of at most ``length`` tokens."""
    length = min(length, windows.shape[1])
    pieces = windows.shape[1] // length
    return windows[:, : pieces * length].reshape(-1, length)


def open_gates(decoder: Decoder) -> list[Tensor]:
    """Gates of 1 [n_kv_head] for every layer."""
    return [torch.ones(layer.n_kv_head, device=decoder.device) for layer in decoder.spec.layers]
