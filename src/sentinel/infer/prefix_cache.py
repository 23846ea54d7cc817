"""Sequences of answers that have ended, kept open so that a prompt that begins alike need not be read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentinel.errors import InputError
from sentinel.infer.engine import Engine, OpenSequence
from sentinel.models.rotary import turns

LEAST = 16  # tokens in common below which a copy does not pay


@dataclass(frozen=True, eq=False)
class _Kept:
    sequence: OpenSequence
    tokens: tuple[int, ...]
    n_byte: int


class PrefixCache:
    """Keeps sequences of ``engine``, up to ``max_bytes`` of keys and values and ``max_sequences``; the least recently used
    goes first. 0 of either keeps nothing."""

    def __init__(self, engine: Engine, max_bytes: int, max_sequences: int) -> None:
        self._engine, self._max_bytes, self._max_sequences = engine, max_bytes, max_sequences
        self._turns = turns(engine.spec)
        self._kept: list[_Kept] = []  # the one used last at the end
        self.n_reused = 0  # tokens of prompts that were not read again

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_byte(self) -> int:
        """Bytes of keys and values that are kept."""
        return sum(kept.n_byte for kept in self._kept)

    def keep(self, sequence: OpenSequence, tokens: Sequence[int]) -> None:
        """Take over a sequence that has read ``tokens``, or close it. One that it begins with is given up for it."""
        size = self._engine.spec_in_use.kv_bytes_read(len(tokens), self._engine.kv_bytes)
        # With longrope, keys depend on how long the text was that they were read with.
        if size > self._max_bytes or not self._max_sequences or any(turn < len(tokens) for turn in self._turns):
            self._engine.close(sequence)
            return
        for kept in [k for k in self._kept if tuple(tokens[: len(k.tokens)]) == k.tokens]:
            self._drop(kept)
        self._kept.append(_Kept(sequence, tuple(tokens), size))
        while self.n_byte > self._max_bytes or len(self._kept) > self._max_sequences:
            self._drop(self._kept[0])

    def begin(self, prompt: Sequence[int], room: int) -> tuple[OpenSequence, int] | None:
        """A sequence that has read the beginning of ``prompt``, with room for the rest and ``room`` more, and how much that
        is; None where nothing that is kept begins alike. The last token is always left to be read."""
        if not self._kept or any(turn < len(prompt) for turn in self._turns):
            return None
        best = max(self._kept, key=lambda kept: _common(kept.tokens, prompt))
        same = min(_common(best.tokens, prompt), len(prompt) - 1)
        if same < LEAST:
            return None
        self._kept.remove(best)
        self._kept.append(best)
        more = max(0, len(prompt) + room - best.sequence.length)
        try:
            sequence = self._engine.fork(best.sequence, more)
        except InputError:  # no place, or too long together
            return None
        try:
            self._engine.roll_back(sequence, sequence.length - same)
        except InputError:  # windows have moved on
            self._engine.close(sequence)
            return None
        self.n_reused += same
        return sequence, same

    def clear(self) -> None:
        """Close all of it."""
        for kept in list(self._kept):
            self._drop(kept)

    def _drop(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        self._engine.close(kept.sequence)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:size]) != np.asarray(b[:size]))
    return int(differ[0]) if len(differ) else size
