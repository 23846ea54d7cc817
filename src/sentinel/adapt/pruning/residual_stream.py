"""The residual stream of a model over a calibration text, advanced one half layer at a time.

Shape letters as in the decoder: B batch, T tokens, C width, K inputs of an output projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from sentinel.adapt.pruning.room import IN_MEMORY, Room, States
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.parts.attention import Attention
from sentinel.models.parts.block import Block, Half
from sentinel.models.parts.mlp import MLP
from sentinel.models.positions import Masks, Rotary

HALVES: tuple[Half, Half] = ("attn", "mlp")
EMBEDDED = 1 << 24  # numbers that are embedded at once


class Stream:
    """Residual states [windows, T, C] in fp32 of all calibration windows, between two half layers.

    What late layers borrow by skips or a baseline is not added here. ``room`` says where they are kept, and how many
    windows are computed at once.
    """

    def __init__(self, decoder: Decoder, windows: Tensor, room: Room = IN_MEMORY) -> None:
        self.decoder = decoder
        self.room = room
        self._length = windows.shape[1]
        positions = positions_of(windows, decoder)
        self.rotary: Rotary = decoder.rotary(positions)
        self._masks = masks_of(windows, decoder)
        self.states = self._states(len(windows), decoder.spec.n_embd)
        at_once = max(1, EMBEDDED // (windows.shape[1] * decoder.spec.n_embd))
        with torch.no_grad():
            for start in range(0, len(windows), at_once):
                some = windows[start : start + at_once].to(decoder.device)
                self.states[start : start + len(some)] = decoder.embedded(some, positions)
        self._entering: States | None = None  # the states before the layer, which parallel halves both read
        self.outputs: States | None = None  # of the last half layer, before its norm, where there is one

    def batches(self) -> Iterator[slice]:
        """Slices over the windows."""
        for start in range(0, len(self.states), self.room.batch):
            yield slice(start, min(start + self.room.batch, len(self.states)))

    def empty(self, width: int) -> States:
        """Room for as many states of another ``width``: [windows, T, width]."""
        return self._states(len(self.states), width)

    def block(self, index: int, half: Half) -> Block:
        """The layer of that number, to use that ``half`` of it."""
        return self.decoder.block(index, half)

    def read(self, index: int, half: Half, batch: slice) -> Tensor:
        """What that half layer reads [B, T, C], its norm applied, for a batch of windows."""
        block = self.block(index, half)
        if half == "attn":
            return block.attn_input(self.states[batch])
        states = self.states if self._entering is None else self._entering
        return block.mlp_input(states[batch])

    def inputs(self, index: int, half: Half, batch: slice) -> Tensor:
        """What the output projection of that half layer reads [B, T, K], for a batch of windows."""
        block = self.block(index, half)
        mask = self._masks.of(block.attn.layer.window)
        return projection_inputs(block, half, self.read(index, half, batch), self.rotary, index, mask)

    def project(self, index: int, half: Half, inputs: Tensor) -> Tensor:
        """Output of that half layer [B, T, C] for what its projection reads."""
        return half_of(self.block(index, half), half).project(inputs)

    def add(self, index: int, half: Half, outputs: Iterable[Tensor]) -> None:
        """Add that half layer's ``outputs`` [B, T, C], batch by batch. Raises `InputError` that names the layer on NaN."""
        block = self.block(index, half)
        width = self.decoder.spec.n_embd
        if half == "attn" and block.joints.parallel:
            self._entering = self.empty(width) if self._entering is None else self._entering
        if block.joints.post_norm:
            self.outputs = self.empty(width) if self.outputs is None else self.outputs
        for batch, y in zip(self.batches(), outputs, strict=True):
            before = self.states[batch]
            after = joined(block, half, before, y)
            check_finite(after, index, half)
            if half == "attn" and self._entering is not None:
                self._entering[batch] = before
            self.states[batch] = after
            if self.outputs is not None:
                self.outputs[batch] = y

    def advance(self, index: int, half: Half, see: Callable[[Tensor], None] | None = None) -> None:
        """Add that half layer's own output to the states; ``see`` is shown what its output projection reads [B, T, K] of
        each batch. Raises `InputError` that names the layer on NaN."""

        def outputs() -> Iterator[Tensor]:
            for batch in self.batches():
                inputs = self.inputs(index, half, batch)
                if see is not None:
                    see(inputs)
                yield self.project(index, half, inputs)

        with torch.no_grad():
            self.add(index, half, outputs())

    def _states(self, count: int, width: int) -> States:
        return self.room.states((count, self._length, width), self.decoder.device)


def positions_of(windows: Tensor, decoder: Decoder) -> Tensor:
    """Positions [1, T] of ``windows`` [windows, T], where ``decoder`` computes."""
    return torch.arange(windows.shape[1], device=decoder.device)[None]


def masks_of(windows: Tensor, decoder: Decoder) -> Masks:
    """What the positions of ``windows`` [windows, T] may look at."""
    return Masks(None, windows.shape[1], windows.shape[1], decoder.device)


def device_of_float64(device: torch.device) -> torch.device:
    """Where to compute in float64 for tensors of ``device``: there, but for Apple's GPUs, which have none."""
    return torch.device("cpu") if device.type == "mps" else device


def half_of(block: Block, half: Half) -> Attention | MLP:
    """The attention or the MLP of a block."""
    return block.attn if half == "attn" else block.mlp


def projection_inputs(block: Block, half: Half, x: Tensor, rotary: Rotary, index: int, mask: Tensor | None) -> Tensor:
    """What the output projection of that half layer reads [B, T, K] when the half reads ``x`` [B, T, C]."""
    if half == "mlp":
        return x.new_zeros(*x.shape[:2], 0) if block.mlp.active_neurons == 0 else block.mlp.hidden(x)
    if block.attn.active_groups == 0:
        return x.new_zeros(*x.shape[:2], 0)
    return block.attn.heads(x, rotary, None, index, mask)


def joined(block: Block, half: Half, x: Tensor, y: Tensor) -> Tensor:
    """The residual stream ``x`` [B, T, C] with the output ``y`` of a half layer."""
    return block.with_attention(x, y) if half == "attn" else block.with_mlp(x, y)


def check_finite(states: Tensor, index: int, half: Half) -> None:
    """Raise `InputError` that names the layer when activations are NaN or infinite."""
    if not torch.isfinite(states).all():
        raise InputError(f"layer {index}: the {half} output is NaN or infinite; check the weights of that layer")
