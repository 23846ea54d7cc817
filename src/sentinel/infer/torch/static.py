"""Level 2 on accelerators: every decode step the same graph, compiled, over a KV cache whose tensors never move.

``torch.compile`` with ``mode="reduce-overhead"`` records the step as a CUDA graph, so that a token costs one launch. For
that the step may not depend on the lengths so far: it runs all slots, writes at positions that are a tensor, and attends
to the whole cache under a mask. Prompts are read eagerly, into the same cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.infer.engine import Logits, OpenSequence
from sentinel.infer.meter import Meter
from sentinel.infer.torch.eager import TorchEngine, in_order, masks_of
from sentinel.infer.torch.slots import OwnLength, Slots, places_of
from sentinel.models.decoder import Decoder, Rotary
from sentinel.models.rotary import turns


class StaticTorchEngine(TorchEngine):
    """Runs a `Decoder` with a static decode step, compiled wherever the decoder is not on the CPU."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder, 2)
        self._static = _StaticStep(decoder)
        self._run: Callable[[Tensor], Tensor] = self._static.logits
        if decoder.device.type != "cpu":
            self._run = torch.compile(self._static.logits, mode="reduce-overhead", fullgraph=True)

    def meter(self) -> Meter:
        """Only where the step is not compiled."""
        if self.decoder.device.type != "cpu":
            raise InputError(f"level 2 on {self.decoder.device} is one compiled graph without parts; profile level 1")
        return super().meter()

    def release(self) -> None:
        """End all sequences, and free their keys and values."""
        super().release()
        self._static.view = None

    @torch.inference_mode()
    def _make_room(self, n_slot: int, n_position: int) -> None:
        if not (self._open or self._fits(n_slot, n_position)):
            self._static.view = None  # it would hold on to what is given up
        super()._make_room(n_slot, n_position)
        if self._static.view is None or self._static.view.store is not self._held.store:
            self._static.place(self._held)

    @torch.inference_mode()
    def _step(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> Logits:
        slots, lengths = [s.slot for s in sequences], [s.length for s in sequences]
        given = [0] * self._held.n_slot
        for slot, token in zip(slots, tokens, strict=True):
            given[slot] = token
        places = places_of(slots, lengths, 0, self._held.n_slot, self._held.spare)
        self._at_width()
        logits = self._run(torch.tensor([given, *places], device=self.decoder.device))
        return in_order(logits[:, -1], slots)


class _StaticStep:
    """What is compiled: one token of every slot, over all positions of a cache."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.view: OwnLength | None = None
        self._rotary: Rotary = {}

    def place(self, slots: Slots) -> None:
        """Run over these slots from here on."""
        store, device = slots.store, self._decoder.device
        if device.type != "cpu":
            for tensor in (*store.keys, *store.values):  # written in place: a CUDA graph must know where
                torch._dynamo.mark_static_address(tensor)
        self.view = OwnLength(slots, slice(None), store.max_len, torch.zeros(slots.n_slot, device=device))
        self._rotary = _rotary_of_ends(self._decoder, store.max_len)

    def logits(self, given: Tensor) -> Tensor:
        """Logits [slots, 1, V]; ``given`` [3, slots]: tokens, where their keys and values go, and their positions."""
        assert self.view is not None
        tokens, writes, positions = given[0][:, None], given[1], given[2][:, None]
        self.view.places = writes
        masks = masks_of(self.view, writes, self.view.store.max_len)
        rotary = {
            key: (cos[0, 0][positions][:, None], sin[0, 0][positions][:, None])
            for key, (cos, sin) in self._rotary.items()
        }
        return self._decoder.logits(self._decoder.through_layers(tokens, positions, rotary, self.view, masks))


def _rotary_of_ends(decoder: Decoder, n_position: int) -> Rotary:
    """Tables [1, 1, n_position, D/2] for every position as the last of its text, whose length decides with longrope."""
    ends = [*(turn for turn in turns(decoder.spec) if turn < n_position), n_position]
    parts = [
        decoder.rotary(torch.arange(start, end, device=decoder.device)[None], end)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return {
        key: (torch.cat([p[key][0] for p in parts], 2), torch.cat([p[key][1] for p in parts], 2)) for key in parts[0]
    }
