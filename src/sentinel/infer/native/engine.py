"""`NativeEngine`: prefill and decode of one model on the CPU, at any width."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sentinel.cores import physical_cores
from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width
from sentinel.progress import say

from .kernels import layout
from .kernels.layout import S
from .kernels.names import Part
from .tables import Tables
from .threads import MAX_THREADS, CallerLock, Team, one_at_a_time
from .weights import NativeWeights
from .widths import PackedWidth

MAX_BATCH = layout.MAX_WANTED


class NativeEngine:
    """Runs one model for up to ``max_batch`` sequences of at most ``max_tokens`` tokens each.

    `prefill` starts sequences, `decode` adds one token to each. Results are the same for any number of threads.
    One engine serves one caller at a time, and lets others wait; several engines may run side by side. After a fork the
    engine goes on in the child process too.

    weights: packed weights (`NativeWeights.from_arrays`, `NativeWeights.load`).
    threads: number of threads, by default the physical cores; at most ``MAX_THREADS`` are used.
    max_tokens: positions kept per sequence, by default the model's ``max_seq_len``.
    half_kv: keep keys and values in half precision; by default for quantised weights only. With the first that half
    precision can't hold, float32 takes its place, the pass is run again, and ``half_kv`` is False.
    """

    def __init__(
        self,
        weights: NativeWeights,
        *,
        threads: int | None = None,
        max_batch: int = 1,
        max_tokens: int | None = None,
        half_kv: bool | None = None,
    ) -> None:
        spec = weights.spec
        if not 1 <= max_batch <= MAX_BATCH:
            raise InputError(f"max_batch must be between 1 and {MAX_BATCH}, not {max_batch}")
        max_tokens = spec.max_seq_len if max_tokens is None else max_tokens
        if not 1 <= max_tokens <= spec.max_seq_len:
            raise InputError(f"max_tokens must be between 1 and the model's {spec.max_seq_len}, not {max_tokens}")
        threads = physical_cores() if threads is None else threads
        if threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        self.callers = CallerLock()
        self.spec: ModelSpec = spec
        self.weights = weights
        self.threads = threads = min(threads, MAX_THREADS)
        self.max_batch = max_batch
        self.max_tokens = max_tokens
        self.lengths = np.zeros(max_batch, np.int64)  # tokens in each sequence so far
        self.half_kv = weights.precision != "fp32" if half_kv is None else half_kv
        sizes = {"threads": threads, "max_batch": max_batch, "max_tokens": max_tokens}
        self._tables = Tables(weights, half_kv=self.half_kv, **sizes)
        self._team: Team | None = None
        self.pass_ns = 0  # in passes since the last call of `profile`, the start and the end of the threads included
        self.set_width(PackedWidth.full(spec))
        self._team = Team(self._tables, threads)

    @one_at_a_time
    def close(self) -> None:
        """Stop the worker threads. The engine can't be used afterwards."""
        if self._team is not None:
            self._team.close()
            self._team = None

    # --- running ----------------------------------------------------------------------------------------------------

    @one_at_a_time
    def prefill(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Start one sequence per prompt (lengths may differ); logits of each next token, [batch, vocab_size]."""
        self.reset()
        if not 1 <= len(prompts) <= self.max_batch:
            raise InputError(f"{len(prompts)} prompts were given to an engine for 1 to {self.max_batch} sequences")
        tokens = [self._checked_tokens(p) for p in prompts]
        for i, prompt in enumerate(tokens):
            if prompt.size == 0:
                raise InputError(f"prompt {i} is empty; it needs at least one token")
            self._check_room(i, prompt.size)
        rows = np.concatenate([_rows(p, b, 0, wanted=p.size - 1) for b, p in enumerate(tokens)])
        out = np.empty((len(tokens), self.spec.vocab_size), np.float32)
        for start in range(0, len(rows), layout.MAX_ROWS):
            part = rows[start : start + layout.MAX_ROWS]
            done = part[part[:, layout.R_WANTED] == 1, layout.R_SEQUENCE]
            logits = self._run(part)
            out[done] = logits[: len(done)]
        self.lengths[: len(tokens)] = [p.size for p in tokens]
        return out

    @one_at_a_time
    def decode(self, tokens: Sequence[int], sequences: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Add one token to each sequence (or to ``sequences`` only); logits of each next token, [batch, vocab_size]."""
        return self._decode(tokens, sequences).copy()

    @one_at_a_time
    def decode_greedy(self, tokens: Sequence[int], sequences: Sequence[int] | None = None) -> NDArray[np.int64]:
        """`decode`, returning each sequence's most probable next token instead of logits, [batch]."""
        n = len(self._decode(tokens, sequences))
        return self._tables.best[:n].copy()

    @one_at_a_time
    def verify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Add several tokens to sequence 0 in one pass; logits after each of them, [len(tokens), vocab_size].

        At most ``MAX_BATCH`` tokens. `rollback` takes the last ones away again.
        """
        found = self._checked_tokens(tokens)
        if not 1 <= found.size <= layout.MAX_WANTED:
            raise InputError(f"1 to {layout.MAX_WANTED} tokens can be verified at once, not {found.size}")
        if self.lengths[0] == 0:
            raise InputError("sequence 0 has no prompt yet; call prefill first")
        self._check_room(0, found.size)
        logits = self._run(_rows(found, 0, int(self.lengths[0]), wanted=None)).copy()
        self.lengths[0] += found.size
        return logits

    @one_at_a_time
    def rollback(self, n_token: int) -> None:
        """Forget the last ``n_token`` tokens of sequence 0 (never its first)."""
        if not 0 <= n_token < max(1, self.lengths[0]):
            raise InputError(f"sequence 0 has {self.lengths[0]} tokens; {n_token} can't be taken away")
        self.lengths[0] -= n_token

    @one_at_a_time
    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits at every position of one text, [len(tokens), vocab_size]; ends all sequences."""
        self.reset()
        text = self._checked_tokens(tokens)
        self._check_room(0, text.size)
        rows = _rows(text, 0, 0, wanted=None)
        out = np.empty((text.size, self.spec.vocab_size), np.float32)
        for start in range(0, text.size, layout.MAX_WANTED):
            part = rows[start : start + layout.MAX_WANTED]
            out[start : start + len(part)] = self._run(part)
        return out

    def reset(self) -> None:
        """Forget all sequences."""
        self.lengths[:] = 0

    def profile(self) -> dict[str, int]:
        """Time-stamp counts of the first thread per part of the passes since the last call (all 0 if not x86)."""
        counts: dict[str, int] = {part.name.lower(): int(self._tables.profile[part]) for part in Part}
        self._tables.profile[:] = 0
        self.pass_ns = 0
        return counts

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes set aside for keys and values; memory is taken as sequences grow."""
        return self._tables.cache.n_byte

    @property
    def work_bytes(self) -> int:
        """Bytes of the areas that a pass works in: residual stream, projections' inputs, logits, private areas."""
        return self._tables.work_bytes

    @property
    def width(self) -> Width:
        """Head groups and neurons in use per layer."""
        return self._width.width

    @one_at_a_time
    def set_width(self, width: PackedWidth) -> None:
        """Use only a part of each layer. Nothing is copied: weights stay where they are. All sequences end."""
        width.width.check(self.spec)
        self._tables.set_width(width)
        self._width = width
        self.reset()

    # --- checks -----------------------------------------------------------------------------------------------------

    def _checked_tokens(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        found = np.asarray(tokens)
        if found.size == 0:
            return np.empty(0, np.int64)
        if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
            raise InputError("tokens must be a flat list of whole numbers")
        if found.min() < 0 or found.max() >= self.spec.vocab_size:
            raise InputError(f"token numbers must be between 0 and {self.spec.vocab_size - 1}")
        return found.astype(np.int64)

    def _check_room(self, sequence: int, n_more: int) -> None:
        length = int(self.lengths[sequence]) + n_more
        if length > self.max_tokens:
            raise InputError(f"sequence {sequence} would have {length} tokens, but the context holds {self.max_tokens}")

    # --- passes -----------------------------------------------------------------------------------------------------

    def _decode(self, tokens: Sequence[int], sequences: Sequence[int] | None) -> NDArray[np.float32]:
        found = self._checked_tokens(tokens)
        which = np.arange(found.size) if sequences is None else np.asarray(sequences, np.int64)
        if found.size == 0 or which.shape != found.shape or found.size > self.max_batch:
            raise InputError(f"{found.size} tokens for {which.size} sequences; give one each to 1 to {self.max_batch}")
        if which.min() < 0 or which.max() >= self.max_batch or (which.size > 1 and np.unique(which).size < which.size):
            raise InputError(f"sequences must be different numbers between 0 and {self.max_batch - 1}")
        for sequence in which.tolist():
            if self.lengths[sequence] == 0:
                raise InputError(f"sequence {sequence} has no prompt yet; call prefill first")
            self._check_room(sequence, 1)
        rows = np.empty((found.size, layout.ROW_FIELDS), np.int64)
        rows[:, layout.R_TOKEN], rows[:, layout.R_SEQUENCE] = found, which
        rows[:, layout.R_POSITION], rows[:, layout.R_WANTED] = self.lengths[which], 1
        logits = self._run(rows)
        self.lengths[which] += 1
        return logits

    def _run(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """One pass; logits of the wanted rows in order (a view that the next pass overwrites)."""
        if self._team is None:
            raise InputError("this engine is closed")
        self._tables.rows[: len(rows)] = rows
        self._tables.state[S.N_ROW] = len(rows)
        start = time.perf_counter_ns()
        self._team.run()
        if self._tables.state[S.TOO_WIDE]:
            self._tables.state[S.TOO_WIDE] = 0
            self.half_kv = False
            self._tables.widen_cache()
            say("keys or values are beyond half precision: the KV cache goes on in fp32")
            self._team.run()
        self.pass_ns += time.perf_counter_ns() - start
        return self._tables.logits[: int(rows[:, layout.R_WANTED].sum()), : self.spec.vocab_size]


def _rows(tokens: NDArray[np.int64], sequence: int, first: int, wanted: int | None) -> NDArray[np.int64]:
    """Row table of consecutive tokens; logits are wanted at index ``wanted``, or everywhere."""
    rows = np.zeros((tokens.size, layout.ROW_FIELDS), np.int64)
    rows[:, layout.R_TOKEN], rows[:, layout.R_SEQUENCE] = tokens, sequence
    rows[:, layout.R_POSITION] = first + np.arange(tokens.size)
    rows[slice(None) if wanted is None else wanted, layout.R_WANTED] = 1
    return rows
