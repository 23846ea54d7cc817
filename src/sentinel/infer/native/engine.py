"""Levels 2 and 3 on the CPU: packed weights of one model, run by compiled kernels at any width."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sentinel.cores import physical_cores
from sentinel.errors import InputError
from sentinel.infer.callers import one_at_a_time
from sentinel.infer.engine import Engine, Logits, Memory, OpenSequence, States
from sentinel.infer.meter import Meter
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width
from sentinel.progress import say

from .kernels import layout
from .kernels.cpu import HAS_FAST_VECTORS
from .kv_cache import KvKind, value_bytes
from .passes import Passes, final_normed, one_each, rows_of
from .program import program
from .threads import MAX_THREADS
from .weights import NativeWeights
from .widths import PackedWidth

MAX_SEQUENCES = layout.MAX_WANTED
ROOM_STEP = 256  # positions: room is made in steps, so that a prompt that is a little longer does not ask for more


class NativeEngine(Engine):
    """Runs packed weights; level 2 when they are fp32, level 3 when they are quantised.

    Sequences are slots of its tables. When they need more slots or positions than there are, larger tables are made, and
    what is open is copied. Results are the same for any number of threads. After a fork the engine goes on in the child.

    weights: packed weights (`NativeWeights.from_arrays`, `NativeWeights.load`).
    threads: number of threads, by default the physical cores; at most ``MAX_THREADS`` are used.
    kv: what keys and values are kept in (`Passes`): fp32; half, the default for quantised weights; or int8 with a scale per
    head and token.
    """

    max_sequences = MAX_SEQUENCES

    def __init__(self, weights: NativeWeights, *, threads: int | None = None, kv: KvKind | None = None) -> None:
        level = 2 if weights.precision == "fp32" else 3
        name = "level 2" if level == 2 else f"level 3 {weights.precision}"
        name = f"{name}, KV int8" if kv == "int8" else name
        super().__init__(weights.spec, name=name, level=level, precision=weights.precision)
        threads = physical_cores() if threads is None else threads
        if threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        self.threads = min(threads, MAX_THREADS)
        self._packed = weights
        self._kv: KvKind = kv or ("half" if level == 3 else "fp32")
        self._width: PackedWidth | None = None
        self._passes: Passes | None = None
        _warn_of_slow_path()
        program()  # compiled before anything is timed

    @property
    def packed(self) -> NativeWeights:
        """The packed weights."""
        return self._packed

    @property
    def kv_bytes(self) -> float:
        """Bytes of a cached key or value, in int8 with its share of a scale."""
        kind = self._kv if self._passes is None else self._passes.kv
        return value_bytes(kind, self.spec.with_baseline_layers().layers)

    @property
    def spec_in_use(self) -> ModelSpec:
        """The sizes that take part, at the width that is set."""
        return self.spec if self._width is None else self._width.width.of(self.spec)

    def weight_bytes_per_token(self) -> int:
        """Bytes of packed weights read to decode one token at batch 1, at the width that is set."""
        stored = self.packed.n_byte - self._bytes_of_tables()
        if self._width is None:
            return stored
        return round(stored * self.spec_in_use.streamed_weights_per_token() / self.spec.streamed_weights_per_token())

    def _bytes_of_tables(self) -> int:
        """Bytes of what is looked up by row: learned positions, and embeddings that are not the LM head too."""
        tables = ("positions.weight", "embed.packed", "embed.scale")
        names = (f"{prefix}{name}" for prefix in ("", "baseline.") for name in tables)
        return sum(self.packed.parts[name].n_byte for name in names if name in self.packed.parts)

    def memory(self) -> Memory:
        """Bytes of the packed weights, and of what has been set aside so far."""
        held = self._passes
        return Memory(self.packed.n_byte, 0 if held is None else held.kv_byte, 0 if held is None else held.work_bytes)

    def meter(self) -> Meter:
        """Reads the counters that are built into the compiled step."""
        from .counters import CounterMeter  # not needed to run, and slow to import

        return CounterMeter(self)

    def profile(self) -> dict[str, int]:
        """Time-stamp counts per part of the compiled step since the last call; see `Passes.profile`."""
        return {} if self._passes is None else self._passes.profile()

    @property
    def pass_ms(self) -> float:
        """Milliseconds in the compiled step since the last call of `profile`."""
        return 0.0 if self._passes is None else self._passes.pass_ns / 1e6

    @one_at_a_time
    def step_greedy(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> NDArray[np.int64]:
        """`step`, of which only each sequence's most probable next token is copied, [n]."""
        self._check_step(sequences, tokens)
        logits = self._pass(sequences, tokens)
        self._count(sequences)
        assert self._passes is not None
        return self._passes.best(len(sequences)) if not self._turns else logits.argmax(axis=1)

    @one_at_a_time
    def release(self) -> None:
        """End all sequences, and the worker threads, until another sequence is opened; those of its draft too."""
        super().release()
        self._free()

    def _free(self) -> None:
        """Give back tables and threads; no sequence is open."""
        if self._passes is not None:
            self._kv = self._passes.kv
            self._passes.close()
            self._passes = None

    @one_at_a_time
    def set_packed_width(self, width: PackedWidth) -> None:
        """`set_width`, with the projections that were re-solved for it."""
        self.set_width(width.width)
        self._use(width)

    # --- what the contract asks for ---------------------------------------------------------------------------------

    def _make_room(self, n_slot: int, n_position: int) -> None:
        old = self._passes
        if old is not None:
            if n_slot <= old.n_slot and n_position <= old.n_position:
                return
            if n_slot > old.n_slot and self._open:  # more will follow, one by one
                n_slot = min(MAX_SEQUENCES, max(n_slot, 2 * old.n_slot))
            n_slot, n_position = max(n_slot, old.n_slot), max(n_position, old.n_position)
        n_position = min(self.spec.max_seq_len, -(-n_position // ROOM_STEP) * ROOM_STEP)
        if not self._open:
            self._free()  # before there is anything new: memory for one of them
            old = None
        kv = self._kv if old is None else old.kv
        self._passes = Passes(self.packed, self.threads, n_slot, n_position, kv=kv)
        if self._width is not None:
            self._passes.set_width(self._width)
        if old is not None:
            for slot, sequence in self._open.items():
                self._passes.copy(slot, old, slot, sequence.reach)
            old.close()

    def _start(self, sequences: Sequence[OpenSequence], prompts: Sequence[Sequence[int]]) -> Logits:
        assert self._passes is not None
        rows = [rows_of(s.slot, 0, np.asarray(p, np.int64), 1) for s, p in zip(sequences, prompts, strict=True)]
        lengths = [len(prompt) for prompt in prompts]
        found = np.empty((len(rows), self.spec.vocab_size), np.float32)
        for alike in self._turned_alike(lengths):
            found[alike] = self._passes.logits(np.concatenate([rows[i] for i in alike]), lengths[alike[0]])
        return found

    def _turned_alike(self, lengths: Sequence[int]) -> list[list[int]]:
        """Numbers of texts of these lengths, those together that have the same rotary angles."""
        groups = dict[int, list[int]]()
        for number, length in enumerate(lengths):
            groups.setdefault(sum(length > turn for turn in self._turns), []).append(number)
        return list(groups.values())

    def _step(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> Logits:
        return self._pass(sequences, tokens).copy()

    def _several(self, sequence: OpenSequence, tokens: Sequence[int], last: int) -> Logits:
        assert self._passes is not None
        rows = rows_of(sequence.slot, sequence.length, np.asarray(tokens, np.int64), last)
        return self._passes.logits(rows, sequence.length + len(tokens))

    def _states(self, sequence: OpenSequence, tokens: Sequence[int], last: int) -> States:
        assert self._passes is not None
        rows = rows_of(sequence.slot, sequence.length, np.asarray(tokens, np.int64), last)
        x = self._passes.states(rows, sequence.length + len(tokens))
        return final_normed(self.spec, self.packed, x)

    def _copy(self, source: OpenSequence, target: OpenSequence) -> None:
        assert self._passes is not None
        self._passes.copy(target.slot, self._passes, source.slot, source.reach)

    def _set_width(self, width: Width) -> None:
        self._use(PackedWidth(width))

    def _use(self, width: PackedWidth) -> None:
        self._width = width
        if self._passes is not None:
            self._passes.set_width(self._width)

    def _pass(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> Logits:
        """Logits [n, V] after one token more of each; a view that the next pass overwrites."""
        assert self._passes is not None
        slots, lengths = [s.slot for s in sequences], [s.length for s in sequences]
        rows, groups = one_each(slots, lengths, list(tokens)), self._turned_alike([length + 1 for length in lengths])
        if len(groups) == 1:
            return self._passes.step(rows, lengths[0] + 1)
        found = np.empty((len(rows), self.spec.vocab_size), np.float32)
        for alike in groups:
            found[alike] = self._passes.step(rows[alike], lengths[alike[0]] + 1)
        return found


@functools.cache
def _warn_of_slow_path() -> None:
    if not HAS_FAST_VECTORS:
        say("this CPU has neither AVX2 nor NEON: levels 2 and 3 are right here, but slow")
