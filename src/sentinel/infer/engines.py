"""The interface of every engine, and the table of optimisation levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec

if TYPE_CHECKING:
    from sentinel.models.decoder import Decoder

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Level:
    """An optimisation level: how a model is run. It never changes what the model computes."""

    number: int
    name: str
    description: str
    available: bool


LEVELS = (
    Level(0, "reference", "attention head by head in a loop, pruned heads masked", True),
    Level(1, "default", "fused projections, scaled-dot-product attention, KV cache, eager", True),
    Level(2, "aggressive", "whole decode step compiled, fp32", False),
    Level(3, "extreme", "level 2 with quantised weights", False),
)


class Engine(Protocol):
    """Runs one model, one batch at a time.

    ``prefill`` starts a new batch and forgets the last one; ``decode_one_token`` continues it. Both return logits of
    the next position, [B, V] in fp32 on the CPU.
    """

    name: str
    level: int
    spec: ModelSpec

    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Logits: ...

    def decode_one_token(self, tokens: Sequence[int]) -> Logits: ...

    def weight_bytes_per_token(self) -> int: ...


def check_level(level: int) -> Level:
    """The level of that number; `InputError` when there is none or when it can't run yet."""
    if not 0 <= level < len(LEVELS):
        raise InputError(f"level {level} does not exist; the levels are 0 to {len(LEVELS) - 1}")
    if not LEVELS[level].available:
        raise InputError(f"level {level} ({LEVELS[level].name}) is not available in this version; levels 0 and 1 are")
    return LEVELS[level]


def make_engine(decoder: Decoder, level: int) -> Engine:
    """An engine that runs ``decoder`` at an optimisation level."""
    check_level(level)
    from sentinel.infer.torch_engine import TorchEngine

    return TorchEngine(decoder, level)


def check_prompts(spec: ModelSpec, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse what can't be run: no prompt, an empty one, unknown ids, or more tokens than the model's context."""
    if not prompts:
        raise InputError("there is no prompt; give at least one")
    if max_new_tokens < 1:
        raise InputError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
    for prompt in prompts:
        if not prompt:
            raise InputError("the prompt is empty; give at least one token")
        if min(prompt) < 0 or max(prompt) >= spec.vocab_size:
            raise InputError(f"token ids must be between 0 and {spec.vocab_size - 1}")
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new_tokens > spec.max_seq_len:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones are more than the model's context of "
            f"{spec.max_seq_len}; shorten the prompt or ask for fewer new tokens"
        )
