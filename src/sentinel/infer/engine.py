"""The interface of every engine, and the table of optimisation levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

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


LEVELS = (
    Level(0, "reference", "attention head by head in a loop, pruned heads masked"),
    Level(1, "default", "fused projections, scaled-dot-product attention, KV cache, eager"),
    Level(2, "aggressive", "whole decode step compiled, fp32"),
    Level(3, "extreme", "level 2 with quantised weights"),
)


MOST_ON_ACCELERATORS = 2  # the highest level that runs anywhere but on the CPU


class Engine(Protocol):
    """Runs one model, one batch at a time.

    ``prefill`` starts a new batch and forgets the last one; ``decode_one_token`` continues it. Both return logits of
    the next position, [B, V] in fp32 on the CPU.
    """

    name: str
    level: int
    precision: str
    spec: ModelSpec

    @property
    def kv_bytes(self) -> int: ...

    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Logits: ...

    def decode_one_token(self, tokens: Sequence[int]) -> Logits: ...

    def weight_bytes_per_token(self) -> int: ...


def check_level(level: int) -> Level:
    """The level of that number; `InputError` when there is none."""
    if not 0 <= level < len(LEVELS):
        raise InputError(f"level {level} does not exist; the levels are 0 to {len(LEVELS) - 1}")
    return LEVELS[level]


def check_precision(level: int, precision: str | None) -> str:
    """The precision that a level runs in: fp32 below level 3, there int8 by default or int4."""
    allowed = ("int8", "int4") if level == 3 else ("fp32",)
    if precision is not None and precision not in allowed:
        raise InputError(f"level {level} runs in {' or '.join(allowed)}, not in {precision}")
    return precision or allowed[0]


def make_engine(decoder: Decoder, level: int, *, precision: str | None = None, threads: int | None = None) -> Engine:
    """An engine that runs ``decoder`` at an optimisation level, as pruned as it is set to be."""
    check_level(level)
    precision = check_precision(level, precision)
    if level < 2:
        from sentinel.infer.torch.eager import TorchEngine

        return TorchEngine(decoder, level)
    if decoder.device.type != "cpu":
        if level > MOST_ON_ACCELERATORS:
            raise InputError(f"level {level} runs on the CPU; on {decoder.device} there are levels 0 to 2")
        from sentinel.infer.torch.static import StaticTorchEngine

        return StaticTorchEngine(decoder)
    from sentinel.infer.cpu_engine import engine_of

    return engine_of(decoder, cast(Any, precision), threads=threads)


def warm_up(engine: Engine) -> None:
    """Let an engine compile and allocate what it does at first use, so that no clock counts that."""
    engine.prefill([[0]], 1)


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
