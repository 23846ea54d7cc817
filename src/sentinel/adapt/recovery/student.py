"""The model in training: which parameters learn, and the loss of a batch at a width."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sentinel.adapt.recovery.distillation import (
    TeacherTargets,
    divergence,
    judged,
    negative_log_likelihood,
    state_distance,
)
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.elastic import StoredWidth

Choice = Callable[[str, nn.Parameter], bool]


def _vectors(name: str, parameter: nn.Parameter) -> bool:
    return name.endswith(".bias") or "norm" in name


def _gates(name: str, parameter: nn.Parameter) -> bool:
    return name.endswith(".gate") or _vectors(name, parameter)


def _projections(name: str, parameter: nn.Parameter) -> bool:
    ends = (".out_proj.weight", ".down_proj.weight")
    return name.endswith(ends) or name.startswith("integration.") or _gates(name, parameter)


def _layers(name: str, parameter: nn.Parameter) -> bool:
    return not name.startswith(("embed.", "positions.", "lm_head."))


# What may learn, each choice with those before it; embeddings, LM head and the frozen baseline never do.
CHOICES: dict[str, Choice] = {"biases": _vectors, "gates": _gates, "projections": _projections, "all": _layers}


class Student(nn.Module):
    """``decoder`` with the parameters that ``choice`` names made trainable, and everything else frozen.

    Of a decoder that stores widths the projections and biases that belong to one of them learn, so that the whole stays
    what it is: norms and gates are shared with it. A width that was stored without projections gets its own first.
    """

    def __init__(
        self,
        decoder: Decoder,
        choice: Choice,
        *,
        temperature: float,
        state_weight: float,
        bf16: bool,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.temperature, self.state_weight, self.bf16 = temperature, state_weight, bf16
        self.widths: list[StoredWidth] = []
        self._flags = {parameter: parameter.requires_grad for parameter in decoder.parameters()}
        decoder.requires_grad_(False)
        if decoder.widths:
            self._own_widths(decoder, choice)
        else:
            for name, parameter in decoder.named_parameters():
                parameter.requires_grad_(parameter.numel() > 0 and self._flags[parameter] and choice(name, parameter))
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise InputError("nothing of this model is trainable by that choice; train projections or all")
        self._checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            for block in decoder.blocks:  # inside of the module, so that hooks that gather shards stay outside
                again: Any = functools.partial(_computed_again, block.forward)
                block.forward = again

    def _own_widths(self, decoder: Decoder, choice: Choice) -> None:
        if decoder.spec.integration is not None:
            raise InputError(
                "the widths of this elastic model share its skips and baseline, which can't learn for one of them alone; "
                "prune to one width and integrate that, or take them off with 'sentinel integrate --configuration minimal'"
            )
        decoder.set_width(0.0)
        self.widths = decoder.widths
        self.own = nn.ModuleList()
        for stored in self.widths:
            parameters = decoder.own_projections(stored)
            for name, parameter in parameters.items():
                parameter.requires_grad_(parameter.numel() > 0 and choice(name, parameter))
            self.own.append(nn.ParameterDict({name.replace(".", "/"): p for name, p in parameters.items()}))

    def learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable parameters by the decoder's names for them; of an elastic decoder with the width before."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix("decoder.").replace("/", "."), parameter

    def label(self, width: int) -> str:
        """How that width is called in reports: "all" of a model that stores none, else what is removed."""
        if not self.widths:
            return "all"
        chosen = self.widths[width]
        return f"heads {chosen.heads:g}" + (f", neurons {chosen.neurons:g}" if chosen.neurons else "")

    def forward(self, tokens: Tensor, targets: TeacherTargets, width: int, judge: bool = False) -> Tensor:
        """Loss of windows ``tokens`` [B, T + 1] whose positions have the ``targets``; with ``judge``, sums over
        positions of divergence and negative log-likelihood [2]."""
        if self.widths:
            chosen = self.widths[width]
            self.decoder.set_width(chosen.heads, chosen.neurons)
        with self.working_precision(tokens.device):
            states = self.decoder.final_norm(self.decoder.hidden_states(tokens[:, :-1])).flatten(0, 1)
            head = self.decoder.head
            if judge:
                nll = negative_log_likelihood(states, head, tokens[:, 1:].flatten())
                return torch.stack((judged(states, head, targets, self.temperature), nll))
            loss = divergence(states, head, targets, self.temperature)
            if self.state_weight:
                loss = loss + self.state_weight * state_distance(states, targets)
            return loss

    def working_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """bfloat16 for matrix products where it pays; weights and their updates stay in fp32."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    def release(self) -> None:
        """Give the decoder back: the whole set, and its parameters trainable as they were."""
        self.decoder.set_width(0.0)
        for block in self.decoder.blocks if self._checkpointing else ():
            del block.forward
        self._checkpointing = False
        for parameter in self.parameters():
            parameter.grad = None
            parameter.requires_grad_(self._flags.get(parameter, False))


def _computed_again(layer: Callable[..., Tensor], *arguments: object) -> Tensor:
    """A layer whose inner states are not kept for the gradient."""
    if not torch.is_grad_enabled():
        return layer(*arguments)
    found = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(found, Tensor)
    return found


def bf16_pays(device: torch.device) -> bool:
    """True where the device multiplies bfloat16 faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cpu" and bool(supported())
