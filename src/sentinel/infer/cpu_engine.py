"""Levels 2 and 3 on the CPU: the native engine behind the interface of all engines."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.infer.engine import Logits, check_prompts
from sentinel.infer.native import HAS_FAST_VECTORS, MAX_BATCH, NativeEngine, NativeWeights, PackedWidth, Precision
from sentinel.infer.native.program import program
from sentinel.infer.native.threads import CallerLock, one_at_a_time
from sentinel.infer.native.weights import Grams
from sentinel.models.rotary import rounded_length
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import with_scales_folded
from sentinel.progress import say

if TYPE_CHECKING:
    from torch import Tensor

    from sentinel.models.decoder import Decoder


class CpuEngine:
    """Runs packed weights; level 2 when they are fp32, level 3 when they are quantised."""

    def __init__(self, weights: NativeWeights, *, threads: int | None = None) -> None:
        self.weights = weights
        self.spec: ModelSpec = weights.spec
        self.level = 2 if weights.precision == "fp32" else 3
        self.precision: str = weights.precision
        self.name = "level 2" if self.level == 2 else f"level 3 {weights.precision}"
        self.callers = CallerLock()
        self._threads = threads
        self._engine: NativeEngine | None = None
        self._batch = self._room = 0
        self._half_kv = self.level == 3
        self._width: PackedWidth | None = None
        _warn_of_slow_path()
        program()  # compiled before anything is timed

    @property
    def kv_bytes(self) -> int:
        """Bytes of a cached key or value."""
        return 2 if self._half_kv and (self._engine is None or self._engine.half_kv) else 4

    def weight_bytes_per_token(self) -> int:
        """Bytes of packed weights read to decode one token at batch 1, at the width that is set."""
        stored = self.weights.n_byte - self._bytes_of_tables()
        if self._width is None:
            return stored
        smaller = self._width.width.of(self.spec)
        return round(stored * smaller.streamed_weights_per_token() / self.spec.streamed_weights_per_token())

    def _bytes_of_tables(self) -> int:
        """Bytes of what is looked up by row: learned positions, and embeddings that are not the LM head too."""
        tables = ("positions.weight", "embed.packed", "embed.scale")
        names = (f"{prefix}{name}" for prefix in ("", "baseline.") for name in tables)
        return sum(self.weights.parts[name].n_byte for name in names if name in self.weights.parts)

    @one_at_a_time
    def set_width(self, width: PackedWidth) -> None:
        """Use the first head groups and neurons of each layer only, as ``width`` says. A batch under way ends."""
        self._width = width
        if self._engine is not None:
            self._engine.set_width(width)

    @one_at_a_time
    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Logits:
        """Logits [B, V] after each prompt; lengths may differ."""
        check_prompts(self.spec, prompts, max_new_tokens)
        if len(prompts) > MAX_BATCH:
            raise InputError(f"levels 2 and 3 take at most {MAX_BATCH} prompts at once, not {len(prompts)}")
        room = max(len(prompt) for prompt in prompts) + max_new_tokens
        return self._sized(len(prompts), room).prefill(prompts)

    @one_at_a_time
    def decode_one_token(self, tokens: Sequence[int]) -> Logits:
        """Logits [B, V] after one more token per sequence."""
        return self._running("decode_one_token").decode(tokens)

    @one_at_a_time
    def verify(self, tokens: Sequence[int]) -> Logits:
        """Logits [T, V] after each of several more tokens of a single sequence, in one pass."""
        return self._running("verify").verify(tokens)

    @one_at_a_time
    def rollback(self, n_token: int) -> None:
        """Take the last tokens of a single sequence away again."""
        self._running("rollback").rollback(n_token)

    @one_at_a_time
    def score(self, tokens: Sequence[int]) -> Logits:
        """Logits [T, V] at every position of one text."""
        if not 1 <= len(tokens) <= self.spec.max_seq_len:
            raise InputError(f"a text of 1 to {self.spec.max_seq_len} tokens can be scored, not one of {len(tokens)}")
        return self._sized(1, len(tokens)).score(tokens)

    def profile(self) -> dict[str, int]:
        """Time-stamp counts per part since the last call; see `NativeEngine.profile`."""
        return {} if self._engine is None else self._engine.profile()

    @property
    def pass_ms(self) -> float:
        """Milliseconds in the compiled step since the last call of `profile`."""
        return 0.0 if self._engine is None else self._engine.pass_ns / 1e6

    def kv_cache_bytes(self) -> int:
        """Bytes that the KV cache has room for."""
        return 0 if self._engine is None else self._engine.kv_cache_bytes

    def work_bytes(self) -> int:
        """Bytes of the areas that a pass works in."""
        return 0 if self._engine is None else self._engine.work_bytes

    @one_at_a_time
    def close(self) -> None:
        """Stop the worker threads."""
        if self._engine is not None:
            self._half_kv = self.kv_bytes == 2
            self._engine.close()
            self._engine = None

    def _running(self, what: str) -> NativeEngine:
        if self._engine is None:
            raise InputError(f"{what} needs a prefill first")
        return self._engine

    def _sized(self, batch: int, room: int) -> NativeEngine:
        """An engine with room for that many sequences and positions; the last one where it is large enough."""
        if self._engine is None or batch > self._batch or room > self._room:
            self.close()
            self._batch = max(batch, self._batch)
            self._room = rounded_length(self.spec, max(room, self._room), 256)
            self._engine = NativeEngine(
                self.weights,
                threads=self._threads,
                max_batch=self._batch,
                max_tokens=self._room,
                half_kv=self._half_kv,
            )
            if self._width is not None:
                self._engine.set_width(self._width)
        return self._engine


@functools.cache
def _warn_of_slow_path() -> None:
    if not HAS_FAST_VECTORS:
        say("this CPU has neither AVX2 nor NEON: levels 2 and 3 are right here, but slow")


def pack(decoder: Decoder, precision: Precision, grams: Grams | None = None) -> NativeWeights:
    """The native engine's weights of a decoder, whole, whatever width is set.

    ``grams``: Gram matrices of the inputs of every projection, layer after layer, for int4 (`gram_matrices.input_grams`).
    """
    return NativeWeights.from_arrays(decoder.spec, _arrays(decoder.whole_state()), precision, grams=grams)


def pack_width(decoder: Decoder, precision: Precision, grams: Grams | None = None) -> PackedWidth:
    """The width that is set, with the projections that were re-solved for it."""
    gates = {name: tensor for name, tensor in decoder.state_dict().items() if name.endswith(".gate")}
    own = {} if decoder.current is None else decoder.current.projections
    folded = with_scales_folded(_arrays({**gates, **own}), decoder.spec)
    return PackedWidth.from_arrays(decoder.spec, decoder.in_use, folded, precision, grams)


def _arrays(state: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}


def engine_of(decoder: Decoder, precision: Precision, *, threads: int | None = None) -> CpuEngine:
    """A native engine that runs what ``decoder`` computes, at the width that is set."""
    engine = CpuEngine(pack(decoder, precision), threads=threads)
    width = pack_width(decoder, precision)
    if width != PackedWidth.full(decoder.spec):
        engine.set_width(width)
    return engine
