"""The residual stream of a model over a calibration text, advanced one half layer at a time.

Shape letters as in the decoder: B batch, T tokens, C width, K inputs of an output projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.decoder import MLP, Attention, Block, Decoder, Rotary

Half = Literal["attn", "mlp"]
HALVES: tuple[Half, Half] = ("attn", "mlp")
BATCH = 8  # windows at once: bounds the memory of activations, whatever the length of the text


class Stream:
    """Residual states [windows, T, C] in fp32 of all calibration windows, between two half layers.

    What late layers borrow by skips or a baseline is not added here.
    """

    def __init__(self, decoder: Decoder, windows: Tensor) -> None:
        self.decoder = decoder
        positions = positions_of(windows, decoder)
        self.rotary: Rotary = decoder.rotary(positions)
        with torch.no_grad():
            self.states = decoder.embedded(windows.to(decoder.device), positions)

    def batches(self) -> Iterator[slice]:
        """Slices over the windows."""
        for start in range(0, len(self.states), BATCH):
            yield slice(start, start + BATCH)

    def inputs(self, index: int, half: Half, batch: slice) -> Tensor:
        """What the output projection of that half layer reads [B, T, K], for a batch of windows."""
        return projection_inputs(self.decoder.blocks[index], half, self.states[batch], self.rotary, index)

    def project(self, index: int, half: Half, inputs: Tensor) -> Tensor:
        """Output of that half layer [B, T, C] for what its projection reads."""
        return half_of(self.decoder.blocks[index], half).project(inputs)

    def advance(self, index: int, half: Half) -> None:
        """Add that half layer's output to the states. Raises `InputError` that names the layer on NaN."""
        with torch.no_grad():
            for batch in self.batches():
                self.states[batch] += self.project(index, half, self.inputs(index, half, batch))
        check_finite(self.states, index, half)


def positions_of(windows: Tensor, decoder: Decoder) -> Tensor:
    """Positions [1, T] of ``windows`` [windows, T], where ``decoder`` computes."""
    return torch.arange(windows.shape[1], device=decoder.device)[None]


def device_of_float64(device: torch.device) -> torch.device:
    """Where to compute in float64 for tensors of ``device``: there, but for Apple's GPUs, which have none."""
    return torch.device("cpu") if device.type == "mps" else device


def half_of(block: Block, half: Half) -> Attention | MLP:
    """The attention or the MLP of a block."""
    return block.attn if half == "attn" else block.mlp


def projection_inputs(block: Block, half: Half, x: Tensor, rotary: Rotary, index: int) -> Tensor:
    """What the output projection of that half layer reads [B, T, K] when the residual stream is ``x`` [B, T, C]."""
    if half == "mlp":
        if block.mlp.active_neurons == 0:
            return x.new_zeros(*x.shape[:2], 0)
        return block.mlp.hidden(block.mlp_norm(x))
    if block.attn.active_groups == 0:
        return x.new_zeros(*x.shape[:2], 0)
    return block.attn.heads(block.attn_norm(x), rotary, None, index, None)


def check_finite(states: Tensor, index: int, half: Half) -> None:
    """Raise `InputError` that names the layer when activations are NaN or infinite."""
    if not torch.isfinite(states).all():
        raise InputError(f"layer {index}: the {half} output is NaN or infinite; check the weights of that layer")
