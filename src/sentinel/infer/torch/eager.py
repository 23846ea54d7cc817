"""Levels 0 and 1: the decoder run eagerly by PyTorch, on any device."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sentinel.infer.engine import Engine, Logits, Memory, OpenSequence, States
from sentinel.infer.meter import Meter
from sentinel.infer.torch.scopes import ScopeMeter
from sentinel.infer.torch.slots import OwnLength, SameLength, Slots, places_of
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import name_of
from sentinel.models.positions import Masks
from sentinel.models.reference import ReferenceDecoder
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

if hasattr(os, "register_at_fork"):  # OpenMP's threads do not survive a fork, and a child waits for them for ever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class TorchEngine(Engine):
    """Runs a `Decoder` (level 1) or its per-head reference (level 0), as pruned as it is set to be.

    Prompts of a batch are padded on the right, where causal attention never looks. A step of several sequences runs all
    rows of the cache between the first and the last of them.
    """

    def __init__(self, decoder: Decoder, level: int) -> None:
        precision, device = name_of(decoder.dtype), str(decoder.device)
        super().__init__(decoder.spec, name=f"level {level}", level=level, precision=precision, device=device)
        self._decoder = ReferenceDecoder(decoder.narrowed()) if level == 0 else decoder
        self._decoder.eval()
        self._width: Width | None = None
        self._slots: Slots | None = None

    @property
    def decoder(self) -> Decoder:
        """The module that is run."""
        return self._decoder

    @property
    def kv_bytes(self) -> int:
        """Bytes of a cached key or value."""
        return self.decoder.dtype.itemsize

    @property
    def spec_in_use(self) -> ModelSpec:
        """The sizes that take part, at the width that is set."""
        return self.spec if self._width is None else self._width.of(self.spec)

    def weight_bytes_per_token(self) -> int:
        """Bytes of weights read to decode one token at batch 1, at the width that is set."""
        return self.spec_in_use.weight_bytes_per_token(self.decoder.dtype.itemsize)

    def memory(self) -> Memory:
        """Bytes of all weights, what tensors share counted once, and of the KV cache."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.decoder.parameters()}
        return Memory(sum(storages.values()), 0 if self._slots is None else self._slots.store.nbytes, None)

    def meter(self) -> Meter:
        """Scopes around the parts of the decoder."""
        return ScopeMeter(self.decoder)

    def release(self) -> None:
        """End all sequences, and free their keys and values."""
        super().release()
        self._slots = None

    # --- what the contract asks for ---------------------------------------------------------------------------------

    def _make_room(self, n_slot: int, n_position: int) -> None:
        if self._fits(n_slot, n_position):
            return
        old = self._slots if self._open else None
        if old is None:
            self._slots = None  # before there is anything new: memory for one of them
        else:
            if n_slot > old.n_slot:  # more will follow, one by one
                n_slot = max(n_slot, 2 * old.n_slot)
            n_slot, n_position = max(n_slot, old.n_slot), max(n_position, old.n_position)
        weight = self.decoder.embed.weight
        new = Slots(self.decoder.cache_spec, n_slot, n_position, weight.dtype, weight.device)
        if old is not None:
            for slot, sequence in self._open.items():
                new.copy(slot, old, slot, sequence.reach)
        self._slots = new

    def _fits(self, n_slot: int, n_position: int) -> bool:
        """True when the cache will do; between batches it has no more rows than there are sequences."""
        held = self._slots
        if held is None or n_position > held.n_position:
            return False
        return n_slot <= held.n_slot if self._open else n_slot == held.n_slot

    @torch.inference_mode()
    def _start(self, sequences: Sequence[OpenSequence], prompts: Sequence[Sequence[int]]) -> Logits:
        if self._turns and len({len(prompt) for prompt in prompts}) > 1:  # each has the angles of its own length
            pairs = zip(sequences, prompts, strict=True)
            return np.concatenate([self._several(sequence, prompt, 1) for sequence, prompt in pairs])
        longest, device = max(len(prompt) for prompt in prompts), self._decoder.device
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
        rows = _rows([sequence.slot for sequence in sequences], device)
        view = SameLength(self._held, rows, 0, [len(prompt) for prompt in prompts])
        x = self._at_width().hidden_states(tokens, view)  # [n, T, C]
        if any(len(prompt) < longest for prompt in prompts):
            ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
            x = x[torch.arange(len(prompts), device=device), ends][:, None]
        return _numpy(self.decoder.logits(x[:, -1:])[:, 0])

    @torch.inference_mode()
    def _step(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> Logits:
        if self._turns and len({sequence.length for sequence in sequences}) > 1:
            pairs = zip(sequences, tokens, strict=True)
            return np.concatenate([self._several(sequence, [token], 1) for sequence, token in pairs])
        slots = [sequence.slot for sequence in sequences]
        first, n_row, past = min(slots), 1 + max(slots) - min(slots), sequences[0].length
        given = [0] * n_row
        for slot, token in zip(slots, tokens, strict=True):
            given[slot - first] = token
        new = torch.tensor(given, device=self.decoder.device)[:, None]
        rows = slice(first, first + n_row)
        if n_row == len(slots) and all(sequence.length == past for sequence in sequences):
            logits = self._at_width()(new, SameLength(self._held, rows, past), last_only=True)
        else:
            logits = self._step_apart(new, rows, sequences)
        return in_order(logits[:, -1], [slot - first for slot in slots])

    def _step_apart(self, tokens: Tensor, rows: slice, sequences: Sequence[OpenSequence]) -> Tensor:
        """Logits [rows, 1, V] of one token each [rows, 1] for sequences of unequal lengths."""
        lengths = [sequence.length for sequence in sequences]
        total, spare, device = max(lengths) + 1, self._held.spare, self.decoder.device
        slots = [sequence.slot for sequence in sequences]
        places = torch.tensor(places_of(slots, lengths, rows.start, len(tokens), spare), device=device)
        positions, view, decoder = places[1, :, None], OwnLength(self._held, rows, total, places[0]), self._at_width()
        rotary = decoder.rotary(positions, total)
        return decoder.logits(decoder.through_layers(tokens, positions, rotary, view, masks_of(view, places[0], total)))

    @torch.inference_mode()
    def _several(self, sequence: OpenSequence, tokens: Sequence[int], last: int) -> Logits:
        view = SameLength(self._held, slice(sequence.slot, sequence.slot + 1), sequence.length)
        decoder = self._at_width()
        x = decoder.hidden_states(torch.tensor(list(tokens), device=decoder.device)[None], view)
        return _numpy(decoder.logits(x[:, -last:])[0])

    @torch.inference_mode()
    def _states(self, sequence: OpenSequence, tokens: Sequence[int], last: int) -> States:
        view = SameLength(self._held, slice(sequence.slot, sequence.slot + 1), sequence.length)
        decoder = self._at_width()
        x = decoder.hidden_states(torch.tensor(list(tokens), device=decoder.device)[None], view)
        return _numpy(decoder.final_norm(x[:, -last:])[0])

    @torch.inference_mode()
    def _score(self, tokens: Sequence[int], last: int) -> Logits:
        decoder = self._at_width()
        x = decoder.hidden_states(torch.tensor(list(tokens), device=decoder.device)[None])
        return _numpy(decoder.logits(x[0, -last:]))

    @torch.inference_mode()
    def _copy(self, source: OpenSequence, target: OpenSequence) -> None:
        self._held.copy(target.slot, self._held, source.slot, source.reach)

    def _set_width(self, width: Width) -> None:
        self._width = width

    def _at_width(self) -> Decoder:
        """The decoder, at the engine's own width if it has one: others may run the same decoder at theirs."""
        if self._width is not None:
            self.decoder.use(self._width)
        return self.decoder

    @property
    def _held(self) -> Slots:
        assert self._slots is not None
        return self._slots


def masks_of(view: OwnLength, places: Tensor, total: int) -> Masks:
    """Which of the first ``total`` positions of a cache a row may look at that writes at its one of ``places`` [rows]."""
    return Masks(None, 1, total, places.device, places=places, shown=view.shown)


def _rows(slots: list[int], device: torch.device) -> slice | Tensor:
    """Rows of a tensor, as a slice where they follow one another."""
    if slots == list(range(slots[0], slots[-1] + 1)):
        return slice(slots[0], slots[-1] + 1)
    return torch.tensor(slots, device=device)


def in_order(logits: Tensor, rows: list[int]) -> Logits:
    """Logits [n, V] of these rows of ``logits`` [rows, V]."""
    return _numpy(logits if rows == list(range(len(logits))) else logits[torch.tensor(rows, device=logits.device)])


def _numpy(logits: Tensor) -> Logits:
    return np.asarray(logits.float().cpu().numpy())
