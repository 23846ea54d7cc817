"""A profile of one engine: milliseconds per component, beside the same generation without a profile, and memory.

Components of a step add up to it. So that this holds of the numbers told too, they are means of the same steps: of the
middle half by their time (an interquartile mean, which like a median is not moved by a step that something disturbed).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentinel.errors import InputError
from sentinel.infer.engine import Engine, OpenSequence
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.infer.meter import Meter, Step
from sentinel.infer.sampling import Sampler, SamplingSettings
from sentinel.infer.token_checks import check_prompts
from sentinel.measure.profiling.device_use import DeviceUse, device_use
from sentinel.progress import track


@dataclass(frozen=True)
class Component:
    """Milliseconds in the prefill and in decoding one token; ``share`` is of the sum of the latter.

    ``fused`` says what is counted with it, as it can't be told apart or has no name of its own.
    """

    name: str
    prefill_ms: float
    decode_ms: float
    share: float
    fused: str


@dataclass(frozen=True)
class MemoryUse:
    """MB (10^6 bytes) of one kind, and what is counted."""

    name: str
    mb: float
    note: str


@dataclass(frozen=True)
class Profile:
    """Times are interquartile means: of a decode step over all tokens of all rounds, of a prefill over the rounds."""

    engine: str
    level: int
    precision: str
    prompt_tokens: int
    new_tokens: int
    rounds: int
    method: str
    components: tuple[Component, ...]
    step_ms: float
    unprofiled_step_ms: float
    prefill_ms: float
    unprofiled_prefill_ms: float
    memory: tuple[MemoryUse, ...]
    steps: tuple[Step, ...]  # the last round's
    device_use: DeviceUse | None = None  # on an accelerator

    @property
    def sum_ms(self) -> float:
        """All components of a decode step."""
        return sum(component.decode_ms for component in self.components)

    @property
    def overhead(self) -> float:
        """What profiling adds to a decode step, as a share of it; noise when it is negative."""
        return self.step_ms / self.unprofiled_step_ms - 1


def profile_engine(engine: Engine, prompt: Sequence[int], new_tokens: int, rounds: int = 5) -> Profile:
    """Profile ``rounds`` generations at batch 1, with as many that are not profiled in turn, after one of each.

    Raises `InputError` for fewer than 2 new tokens (the first comes from the prefill) and for what the engine can't take.
    """
    if new_tokens < 2:
        raise InputError(f"a profile needs at least 2 new tokens, not {new_tokens}: the first comes from the prefill")
    check_prompts(engine.spec, [prompt], new_tokens)
    meter = engine.meter()
    plain: list[list[float]] = []
    profiled: list[list[Step]] = []
    for number in track(range(-1, rounds), "Profiling", rounds + 1):
        timings = Timings()
        list(generate_tokens(engine, [prompt], new_tokens, timings=timings))
        steps = profiled_steps(engine, meter, prompt, new_tokens)
        if number >= 0:
            plain.append([ms * 1e3 for ms in np.diff(timings.stamps, prepend=0.0)])
            profiled.append(steps)
    return Profile(
        engine=engine.name,
        level=engine.level,
        precision=engine.precision,
        prompt_tokens=len(prompt),
        new_tokens=new_tokens,
        rounds=rounds,
        method=meter.method,
        components=_components(meter, profiled),
        step_ms=_middle_mean([step.total_ms for steps in profiled for step in steps[1:]]),
        unprofiled_step_ms=_middle_mean([ms for stamps in plain for ms in stamps[1:]]),
        prefill_ms=_middle_mean([steps[0].total_ms for steps in profiled]),
        unprofiled_prefill_ms=_middle_mean([stamps[0] for stamps in plain]),
        memory=memory_use(engine, prompt, new_tokens),
        steps=tuple(profiled[-1]),
        device_use=None if engine.device == "cpu" else device_use(engine, prompt, new_tokens),
    )


def profiled_steps(engine: Engine, meter: Meter, prompt: Sequence[int], new_tokens: int) -> list[Step]:
    """The steps of one greedy generation under ``meter``."""
    sampler, history = Sampler(SamplingSettings(), 1), [list(prompt)]
    sequences: list[OpenSequence] = []
    try:
        with meter.watching():
            for number in range(new_tokens):
                with meter.step():
                    if number:
                        logits = engine.step(sequences, history[0][-1:])
                    else:
                        sequences, logits = engine.open_all([prompt], new_tokens)
                    with meter.sampling():
                        tokens = sampler(logits, history)
                history[0] += tokens
    finally:
        engine.close(*sequences)
    return meter.take()


def _components(meter: Meter, profiled: Sequence[Sequence[Step]]) -> tuple[Component, ...]:
    prefill = _typical([steps[0] for steps in profiled])
    decode = _typical([step for steps in profiled for step in steps[1:]])
    total = sum(decode.values())
    return tuple(
        Component(name, prefill[name], decode[name], decode[name] / total, fused)
        for name, fused in ((name, meter.fused.get(name, "")) for name in meter.components)
    )


def _typical(steps: Sequence[Step]) -> dict[str, float]:
    """Mean milliseconds per component over the middle half of ``steps``; they add up to `_middle_mean` of the totals."""
    chosen = [steps[place] for place in _middle_half([step.total_ms for step in steps])]
    found: dict[str, float] = defaultdict(float)
    for step in chosen:
        for name, milliseconds in step.components().items():
            found[name] += milliseconds / len(chosen)
    return found


def _middle_mean(values: Sequence[float]) -> float:
    return float(np.mean([values[place] for place in _middle_half(values)]))


def _middle_half(values: Sequence[float]) -> list[int]:
    """Places of the values less the lowest and the highest quarter."""
    cut = len(values) // 4
    return np.argsort(values, kind="stable")[cut : len(values) - cut].tolist()


def memory_use(engine: Engine, prompt: Sequence[int], new_tokens: int) -> tuple[MemoryUse, ...]:
    """Weights, keys and values, activations of a generation at batch 1. The engine is run once more for it."""
    from sentinel.measure.profiling.tensor_memory import LiveTensors

    with LiveTensors() as prefill:
        sequence, _ = engine.open(prompt, new_tokens)
    with LiveTensors() as decode:
        engine.step([sequence], prompt[-1:])
    held = engine.memory()
    engine.close(sequence)
    if held.work is None:  # what a pass takes for itself, it takes from PyTorch
        said = "the most that lives at one time while {}"
        activations = [
            MemoryUse("activations, prefill", prefill.peak / 1e6, said.format(f"{len(prompt)} tokens are read")),
            MemoryUse("activations, decoding", decode.peak / 1e6, said.format("one token is decoded")),
        ]
    else:
        note = "work areas of all threads, made once for passes of any size"
        activations = [MemoryUse("activations", held.work / 1e6, note)]
    tokens = len(prompt) + new_tokens
    filled = engine.spec_in_use.kv_bytes(tokens, engine.kv_bytes)
    return (
        MemoryUse("weights", held.weights / 1e6, f"{engine.precision}, the embedding included"),
        MemoryUse("KV cache", held.kv / 1e6, f"room; {tokens} tokens fill {filled / 1e6:,.2f} MB"),
        *activations,
    )
