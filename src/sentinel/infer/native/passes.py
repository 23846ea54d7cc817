"""Passes of tokens through one model: tables for so many slots and positions, and the threads that run on them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sentinel.models.spec import ModelSpec
from sentinel.progress import say

from .kernels import layout
from .kernels.layout import S
from .kernels.names import Part
from .kv_cache import KvKind
from .tables import Tables
from .threads import Team
from .weights import NativeWeights
from .widths import PackedWidth

Rows = NDArray[np.int64]


class Passes:
    """Runs rows (a token of a slot at a position each) of up to ``n_slot`` sequences of ``n_position`` tokens.

    ``kv`` is what keys and values are kept in. With the first that half precision can't hold, float32 takes its place, the
    pass is run again, and ``kv`` is fp32.
    """

    def __init__(self, weights: NativeWeights, threads: int, n_slot: int, n_position: int, *, kv: KvKind) -> None:
        self.n_slot, self.n_position = n_slot, n_position
        self.pass_ns = 0  # since the last call of `profile`, the start and the end of the threads included
        self._vocab_size = weights.spec.vocab_size
        self._tables = Tables(weights, threads=threads, max_batch=n_slot, max_tokens=n_position, kv=kv)
        self._tables.set_width(PackedWidth.full(weights.spec))
        self._team = Team(self._tables, threads)

    @property
    def kv(self) -> KvKind:
        return self._tables.cache.kind

    @property
    def kv_byte(self) -> int:
        """Bytes set aside for keys and values; memory is taken as sequences grow."""
        return self._tables.cache.n_byte

    @property
    def work_bytes(self) -> int:
        """Bytes of the areas that a pass works in: residual stream, projections' inputs, logits, private areas."""
        return self._tables.work_bytes

    def set_width(self, width: PackedWidth) -> None:
        """Use only a part of each layer. Nothing is copied; what slots hold is of no use any more."""
        self._tables.set_width(width)

    def logits(self, rows: Rows, length: int) -> NDArray[np.float32]:
        """Logits [wanted rows, V] in the order of the rows, in as many passes as they take; with the rotary angles of texts
        of ``length`` tokens."""
        return self._in_passes(rows, length, self._vocab_size, self.run)

    def states(self, rows: Rows, length: int) -> NDArray[np.float32]:
        """As `logits`, the states [wanted rows, C] of the residual stream after the last layer; no logits are made."""
        width = self._tables.spec.n_embd

        def run(piece: Rows) -> NDArray[np.float32]:
            return self._tables.residual[: len(self.run(piece)), :width]

        with self._tables.without_head():
            return self._in_passes(rows, length, width, run)

    def _in_passes(
        self, rows: Rows, length: int, width: int, run: Callable[[Rows], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """What ``run`` finds, [wanted rows, ``width``], of as many rows at once as it takes."""
        self._tables.use_length(length)
        wanted = np.cumsum(rows[:, layout.R_WANTED])
        out = np.empty((int(wanted[-1]), width), np.float32)
        start = done = 0
        while start < len(rows):
            end = int(np.searchsorted(wanted, done + layout.MAX_WANTED, side="right"))
            end = min(end, start + layout.MAX_ROWS)
            found = run(rows[start:end])
            out[done : done + len(found)] = found
            start, done = end, done + len(found)
        return out

    def step(self, rows: Rows, length: int) -> NDArray[np.float32]:
        """`run` with the rotary angles of texts of ``length`` tokens."""
        self._tables.use_length(length)
        return self.run(rows)

    def run(self, rows: Rows) -> NDArray[np.float32]:
        """One pass of at most ``MAX_ROWS`` rows, ``MAX_WANTED`` of them wanted; a view that the next pass overwrites."""
        self._tables.rows[: len(rows)] = rows
        self._tables.state[S.N_ROW] = len(rows)
        start = time.perf_counter_ns()
        self._team.run()
        if self._tables.state[S.TOO_WIDE]:
            self._tables.state[S.TOO_WIDE] = 0
            self._tables.widen_cache()
            say("keys or values are beyond half precision: the KV cache goes on in fp32")
            self._team.run()
        self.pass_ns += time.perf_counter_ns() - start
        return self._tables.logits[: int(rows[:, layout.R_WANTED].sum()), : self._vocab_size]

    def best(self, n: int) -> NDArray[np.int64]:
        """The most probable token after each of the first ``n`` wanted rows of the last pass."""
        return self._tables.best[:n].copy()

    def copy(self, slot: int, source: Passes, source_slot: int, reach: int) -> None:
        """Let ``slot`` hold what a slot of ``source`` does, which has held up to ``reach`` tokens."""
        self._tables.cache.copy(slot, source._tables.cache, source_slot, reach)

    def profile(self) -> dict[str, int]:
        """Time-stamp counts of the first thread per part of the passes since the last call (all 0 if not x86)."""
        counts: dict[str, int] = {part.name.lower(): int(self._tables.profile[part]) for part in Part}
        self._tables.profile[:] = 0
        self.pass_ns = 0
        return counts

    def close(self) -> None:
        """Stop the worker threads. No pass can be run afterwards."""
        self._team.close()


def rows_of(slot: int, first: int, tokens: NDArray[np.int64], last: int) -> Rows:
    """Rows of consecutive tokens of a slot from position ``first`` on; logits are wanted of the ``last`` of them."""
    rows = np.zeros((len(tokens), layout.ROW_FIELDS), np.int64)
    rows[:, layout.R_TOKEN], rows[:, layout.R_SEQUENCE] = tokens, slot
    rows[:, layout.R_POSITION] = first + np.arange(len(tokens))
    rows[len(tokens) - last :, layout.R_WANTED] = 1
    return rows


def one_each(slots: list[int], positions: list[int], tokens: list[int]) -> Rows:
    """A wanted row for every slot."""
    rows = np.empty((len(slots), layout.ROW_FIELDS), np.int64)
    rows[:, layout.R_TOKEN], rows[:, layout.R_SEQUENCE] = tokens, slots
    rows[:, layout.R_POSITION], rows[:, layout.R_WANTED] = positions, 1
    return rows


def final_normed(spec: ModelSpec, weights: NativeWeights, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The final norm of states ``x`` [T, C], as the compiled step has it."""
    if "final_norm.weight" not in weights.parts:
        return x
    weight = weights.array("final_norm.weight")[: spec.n_embd]
    if spec.norm.kind == "layernorm":
        x = x - x.mean(axis=1, keepdims=True)
    normed = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(spec.norm.eps)) * weight
    return normed + weights.array("final_norm.bias")[: spec.n_embd] if spec.norm.kind == "layernorm" else normed
