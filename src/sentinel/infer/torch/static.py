"""Level 2 on accelerators: every decode step the same kernels, over a KV cache whose tensors never move.

On CUDA a step is recorded as a graph, one for each width and cache, so that a token costs one launch. For that the step
may not depend on the lengths so far: it runs all slots, writes at positions that are a tensor, and attends to the whole
cache under a mask. Prompts are read eagerly, into the same cache. Where the engine chooses the tokens itself (`choose_on`),
a step feeds the next one, and the host reads the tokens some steps later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.infer.engine import Logits, OpenSequence
from sentinel.infer.meter import Meter
from sentinel.infer.sampling import Sampler, SamplingSettings
from sentinel.infer.torch.captured import OnTheWay, captured
from sentinel.infer.torch.choosing import chosen_tokens
from sentinel.infer.torch.eager import TorchEngine, in_order, masks_of
from sentinel.infer.torch.slots import OwnLength, Slots, places_of
from sentinel.models.decoder import Decoder, Rotary
from sentinel.models.rotary import turns

AHEAD = 8  # tokens that the host may be behind


class StaticTorchEngine(TorchEngine):
    """Runs a `Decoder` with a static decode step, on CUDA as a graph."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder, 2)
        self._steps: dict[Any, _StaticStep] = {}  # of the cache that is held, by width and by how tokens are chosen

    def meter(self) -> Meter:
        """Only where the step is no graph."""
        if self.decoder.device.type != "cpu":
            raise InputError(f"level 2 on {self.decoder.device} is one compiled graph without parts; profile level 1")
        return super().meter()

    def release(self) -> None:
        """End all sequences, and free their keys and values and what was recorded over them."""
        super().release()
        self._steps.clear()

    @torch.inference_mode()
    def _make_room(self, n_slot: int, n_position: int) -> None:
        if not (self._open or self._fits(n_slot, n_position)):
            self._steps.clear()  # they would hold on to what is given up
        before = self._slots
        super()._make_room(n_slot, n_position)
        if self._slots is not before:
            self._steps.clear()

    @torch.inference_mode()
    def _step(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> Logits:
        step = self._recorded(None, sequences, lambda: tokens)
        step.place(sequences, tokens)
        step.run()
        found = in_order(step.logits, [sequence.slot for sequence in sequences])
        return found.copy() if self.decoder.device.type == "cpu" else found  # the next step writes over them

    def _recorded(
        self,
        settings: SamplingSettings | None,
        sequences: Sequence[OpenSequence],
        tokens: Callable[[], Sequence[int]],
    ) -> _StaticStep:
        """The step over the cache that is held, at the width that is set, which chooses tokens by ``settings``.

        It is recorded while it runs on the next ``tokens`` of these sequences, which it must then be given anew.
        """
        decoder = self._at_width()
        key = (decoder.in_use, None if decoder.current is None else decoder.current.key, settings)
        if key not in self._steps:
            self._steps[key] = _StaticStep(decoder, self._held, settings, sequences, tokens())
        return self._steps[key]

    # --- tokens that are chosen here --------------------------------------------------------------------------------

    def chooses(self, settings: SamplingSettings) -> bool:
        """True for what needs the logits alone; penalties and biases are the host's."""
        penalties = (settings.repetition_penalty - 1, settings.presence_penalty, settings.frequency_penalty)
        return not any(penalties) and not settings.logit_bias

    def choose_on(
        self, sequences: Sequence[OpenSequence], tokens: Sequence[int], sampler: Sampler, n_token: int
    ) -> Iterator[list[int]]:
        """As `Engine.choose_on`: up to `AHEAD` steps are under way before the host reads the first one's tokens."""
        numbers = sampler.numbers(n_token)
        pending: deque[OnTheWay] = deque()
        last: Callable[[], Sequence[int]] = lambda: tokens  # noqa: E731
        holder = object()
        for count in range(n_token):
            found = self._one_ahead(holder, sequences, last, sampler.settings, numbers[count])
            pending.append(found)
            last = found.read
            if len(pending) == AHEAD:
                yield pending.popleft().read()
        while pending:
            yield pending.popleft().read()

    @torch.inference_mode()
    def _one_ahead(
        self,
        holder: object,
        sequences: Sequence[OpenSequence],
        last: Callable[[], Sequence[int]],
        settings: SamplingSettings,
        numbers: Sequence[float],
    ) -> OnTheWay:
        """Let one more step begin, on what the one before left where it is still there."""
        with self.callers:
            for sequence in sequences:
                self._check_room(sequence, 1)
            now = self._recorded(settings, sequences, last)
            if now.holder is not holder:  # a first step, another cache, or others were run in between
                now.place(sequences, last())
                now.holder = holder
            now.draw_by(sequences, numbers)
            now.run()
            self._count(sequences)
            return OnTheWay(now.chosen(sequences))


class _StaticStep:
    """One token of every slot of a cache, over all its positions: what is read and what is found stay where they are.

    ``given`` [3, slots] are the tokens, where their keys and values go, and their positions; ``logits`` [slots, V] what is
    found. With ``settings`` the step then chooses the next tokens and moves on by itself.
    """

    def __init__(
        self,
        decoder: Decoder,
        slots: Slots,
        settings: SamplingSettings | None,
        sequences: Sequence[OpenSequence],
        tokens: Sequence[int],
    ) -> None:
        self._decoder, self._slots, self._settings = decoder, slots, settings
        device, n_slot, spec = decoder.device, slots.n_slot, decoder.spec
        self.holder: object = None  # whose tokens are in ``given``
        self.given = torch.zeros(3, n_slot, dtype=torch.int64, device=device)
        self._moves = torch.zeros(n_slot, dtype=torch.int64, device=device)  # 1 for a slot that takes part
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._numbers = torch.zeros(n_slot, dtype=exact, device=device)
        self.logits = torch.zeros(n_slot, spec.vocab_size, dtype=decoder.dtype, device=device)
        self._rotary = _rotary_of_ends(decoder, slots.store.max_len)
        self.place(sequences, tokens)  # the recording writes where the first step will, and nowhere else
        self._moves.zero_()
        self.run = captured(self._advance, device)

    def place(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> None:
        """Let these tokens be the next ones of these sequences; no other slot takes part."""
        slots, lengths = [s.slot for s in sequences], [s.length for s in sequences]
        n_slot = self._slots.n_slot
        rows = np.zeros((2, n_slot), np.int64)
        rows[0, slots], rows[1, slots] = tokens, 1
        writes, positions = places_of(slots, lengths, 0, n_slot, self._slots.spare)
        self.holder = None
        self.given.copy_(torch.from_numpy(np.stack([rows[0], writes, positions])))
        self._moves.copy_(torch.from_numpy(rows[1]))

    def draw_by(self, sequences: Sequence[OpenSequence], numbers: Sequence[float]) -> None:
        """The numbers in [0, 1) by which the next tokens of these sequences are drawn; greedy choice needs none."""
        if self._settings is not None and self._settings.temperature > 0:
            host = np.zeros(self._slots.n_slot)
            host[[sequence.slot for sequence in sequences]] = numbers
            self._numbers.copy_(torch.from_numpy(host), non_blocking=True)

    def chosen(self, sequences: Sequence[OpenSequence]) -> Tensor:
        """The tokens [n] that were chosen for these sequences."""
        slots = [sequence.slot for sequence in sequences]
        first, n = slots[0], len(slots)
        if slots == list(range(first, first + n)):  # a view: indices would have to be sent there
            return self.given[0, first : first + n]
        return self.given[0].index_select(0, torch.tensor(slots, device=self.given.device))

    def _advance(self) -> None:
        view = OwnLength(self._slots, slice(None), self._slots.store.max_len, self.given[1])
        tokens, positions = self.given[0][:, None], self.given[2][:, None]
        masks = masks_of(view, self.given[1], self._slots.store.max_len)
        rotary = {
            key: (cos[0, 0][positions][:, None], sin[0, 0][positions][:, None])
            for key, (cos, sin) in self._rotary.items()
        }
        x = self._decoder.through_layers(tokens, positions, rotary, view, masks)
        self.logits.copy_(self._decoder.logits(x)[:, 0])
        if self._settings is not None:
            self.given[0].copy_(chosen_tokens(self.logits.float(), self._settings, self._numbers))
            self.given[1:].add_(self._moves)


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
