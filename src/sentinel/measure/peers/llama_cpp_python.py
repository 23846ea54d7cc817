"""llama.cpp through llama-cpp-python: GGUF files in fp32, Q8_0 and Q4_0 (with the LM head in Q8_0)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sentinel.formats.gguf.export import SUPPORTS, write_gguf
from sentinel.infer.generate import Timings
from sentinel.measure.peers.peer import PeerSettings, Runner
from sentinel.models.decoder import Decoder
from sentinel.models.spec import ModelSpec

NAME = "llama-cpp-python"
MODULES = ("llama_cpp",)
REQUIREMENTS = ("llama-cpp-python",)
VARIANTS = {"F32": "fp32", "Q8_0": "int8", "Q4_0": "int4"}
FILES = {"F32": "fp32", "Q8_0": "q8_0", "Q4_0": "q4_0"}  # precisions of the file
MAX_BATCH = 1  # `Llama.eval` takes one sequence

__all__ = ["SUPPORTS", "LlamaCpp", "prepare"]  # what it supports is what the file holds, which refuses the rest


def prepare(decoder: Decoder, folder: Path, variant: str, settings: PeerSettings) -> LlamaCpp:
    """A runner of ``decoder`` in the file type ``variant``."""
    path = folder / f"{variant}.gguf"
    streamed = write_gguf(decoder, None, path, FILES[variant])
    return LlamaCpp(f"{NAME} {variant}", path, decoder.spec, streamed, settings)


class LlamaCpp(Runner):
    """One loaded GGUF file; keys and values are cached in fp16, its default."""

    kv_bytes = 2

    def __init__(self, name: str, path: Path, spec: ModelSpec, weight_bytes: int, settings: PeerSettings) -> None:
        import llama_cpp  # pyright: ignore[reportMissingImports]

        super().__init__(name, spec, weight_bytes)
        self._last_logits = llama_cpp.llama_get_logits_ith
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=settings.room,
            n_batch=settings.room,
            n_threads=settings.threads,
            n_threads_batch=settings.threads,
            verbose=False,
        )

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, timings: Timings) -> list[list[int]]:
        """Exactly ``new_tokens`` greedy tokens for the one prompt."""
        (prompt,) = prompts
        start = time.perf_counter()
        self._llama.reset()
        tokens: list[int] = []
        new: Sequence[int] = list(prompt)
        for _ in range(new_tokens):
            self._llama.eval(new)
            logits = np.ctypeslib.as_array(self._last_logits(self._llama.ctx, -1), (self._llama.n_vocab(),))
            tokens.append(int(logits.argmax()))
            timings.stamps.append(time.perf_counter() - start)
            new = tokens[-1:]
        return [tokens]

    def close(self) -> None:
        """Free the model and unmap its file."""
        self._llama.close()
