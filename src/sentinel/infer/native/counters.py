"""Where the time of levels 2 and 3 goes: the counters that are built into the compiled step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from numba import njit

from sentinel.errors import InputError
from sentinel.infer.meter import FUSIONS, PYTHON, SAMPLING, THREADS, Span, Step, components_of
from sentinel.models.spec import ModelSpec

from .kernels.intrinsics import cycles

# Component of each part of the compiled step (`kernels.names.Part`).
PART_COMPONENTS = {
    "embed": "embedding",
    "norm": "norms",
    "qkv": "q/k/v",
    "cache": "attention",
    "attention": "attention",
    "out": "output projection",
    "norm2": "norms",
    "up": "MLP",
    "quantise": "MLP",
    "down": "MLP",
    "head": "LM head",
    "fuse": FUSIONS,
}


class Counted(Protocol):
    """An engine whose compiled step counts the time of its parts."""

    name: str
    precision: str
    spec: ModelSpec

    @property
    def pass_ms(self) -> float: ...

    def profile(self) -> dict[str, int]: ...


class CounterMeter:
    """Profiles the native engine. Its counters are always there; reading them once per step is all that is added."""

    def __init__(self, engine: Counted) -> None:
        self.engine = engine
        self._per_ms = ticks_per_ms()
        if self._per_ms == 0:
            raise InputError(f"{engine.name} has no counters on this processor; profile level 0 or 1")
        self._steps: list[Step] = []
        self._sampling_ms = 0.0
        self.method = (
            "time-stamp counters in the compiled step, summed over layers; "
            "those of the first thread, its waiting for the others included"
        )
        rounding = "" if engine.precision == "fp32" else ", and the rounding of their result to whole numbers"
        self.components = components_of(engine.spec, threads=True)
        self.fused = {
            "norms": f"those of the layers{rounding}",
            "attention": "the rotation of queries and keys, and storing keys and values",
            "output projection": "the addition to the residual stream",
            "MLP": "activation, and the addition to the residual stream",
            "LM head": "the final norm, and the search for the largest logit",
            THREADS: "waking the others and waiting for the last one: what of the compiled step no counter covers",
            PYTHON: "what is outside of the compiled step: checks, the table of its rows, the copy of the logits",
        }

    def watching(self) -> AbstractContextManager[None]:
        """Around a generation: nothing is added to it."""
        return nullcontext()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step."""
        self.engine.profile()  # sets the counters to zero
        start = time.perf_counter()
        yield
        total = (time.perf_counter() - start) * 1e3
        self._steps.append(self._step(total, self._sampling_ms, self.engine.pass_ms))

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around the choice of the token."""
        start = time.perf_counter()
        yield
        self._sampling_ms = (time.perf_counter() - start) * 1e3

    def take(self) -> list[Step]:
        """The steps since the last call."""
        found, self._steps = self._steps, []
        return found

    def _step(self, total_ms: float, sampling_ms: float, pass_ms: float) -> Step:
        """``total_ms`` is sampling, the compiled step (``pass_ms``), and the Python around it."""
        parts = {name: count / self._per_ms for name, count in self.engine.profile().items()}
        unknown = set(parts) - set(PART_COMPONENTS)
        assert not unknown, f"parts of the compiled step that no component covers: {unknown}"
        parts = {name: ms for name, ms in parts.items() if PART_COMPONENTS[name] in self.components}
        python = total_ms - sampling_ms - pass_ms
        threads = max(0.0, pass_ms - sum(parts.values()))  # below 0 by the error of the counter's rate only
        spans = [Span(PYTHON, "step", 0.0, total_ms, python), Span(THREADS, THREADS, python, threads, threads)]
        start = (
            python + threads
        )  # the parts of all layers are summed, so that a trace can only show them one after another
        for name, milliseconds in parts.items():
            spans.append(Span(PART_COMPONENTS[name], f"{name}, all layers", start, milliseconds, milliseconds))
            start += milliseconds
        spans.append(Span(SAMPLING, SAMPLING, start, sampling_ms, sampling_ms))
        return Step(tuple(spans))


@njit
def _now():
    return cycles()


def ticks_per_ms(milliseconds: float = 50.0) -> float:
    """Ticks of the time-stamp counter in a millisecond, measured now; 0 where there is no counter."""
    _now()  # compiled here, outside of the measurement
    start, first = time.perf_counter(), _now()
    time.sleep(milliseconds / 1e3)
    end, last = time.perf_counter(), _now()
    return float(last - first) / ((end - start) * 1e3)
