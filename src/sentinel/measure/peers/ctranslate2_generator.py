"""CTranslate2's generator, in fp32 and int8 (it has no 4-bit weights on the CPU)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentinel.infer.generate import Timings
from sentinel.measure.peers.peer import PeerSettings, Runner
from sentinel.models.decoder import Decoder
from sentinel.models.features import PLAIN
from sentinel.models.spec import ModelSpec

NAME = "ctranslate2"
MODULES = ("ctranslate2",)
REQUIREMENTS = ("ctranslate2",)
VARIANTS = {"float32": "fp32", "int8": "int8"}
MAX_BATCH = 32
SUPPORTS = PLAIN | {"rotary scaling linear"}


def prepare(decoder: Decoder, folder: Path, variant: str, settings: PeerSettings) -> CTranslate2:
    """A runner of ``decoder`` in the compute type ``variant``."""
    from sentinel.formats.ctranslate2 import write_model

    path = folder / f"ctranslate2-{variant}"
    streamed = write_model(decoder, path, None if variant == "float32" else variant)
    return CTranslate2(f"{NAME} {variant}", path, decoder.spec, variant, streamed, settings)


class CTranslate2(Runner):
    """One generator; keys and values are cached in fp32."""

    def __init__(
        self, name: str, path: Path, spec: ModelSpec, compute_type: str, weight_bytes: int, settings: PeerSettings
    ) -> None:
        import ctranslate2  # pyright: ignore[reportMissingImports]

        super().__init__(name, spec, weight_bytes)
        self._generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=settings.threads
        )

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, timings: Timings) -> list[list[int]]:
        """Exactly ``new_tokens`` greedy tokens for each of the equally long ``prompts``."""
        start = time.perf_counter()
        told = 0

        def note(step: Any) -> bool:
            nonlocal told
            told += 1
            if told % len(prompts) == 0:  # called once per sequence
                timings.stamps.append(time.perf_counter() - start)
            return False

        results = self._generator.generate_batch(
            [[str(token) for token in prompt] for prompt in prompts],
            max_length=new_tokens,
            min_length=new_tokens,
            include_prompt_in_result=False,
            callback=note,
        )
        return [list(result.sequences_ids[0]) for result in results]

    def close(self) -> None:
        """Free the model."""
        self._generator.unload_model()
