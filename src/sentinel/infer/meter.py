"""Where the time of an engine goes: spans of time, each of one component, within the steps of a generation."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from sentinel.models.spec import ModelSpec

PYTHON = "Python"
THREADS = "threads"
SAMPLING = "sampling"
FUSIONS = "fusions"  # of skips and baseline integration
COMPONENTS = (
    "embedding", "norms", "q/k/v", "attention", "output projection", "MLP", FUSIONS, "LM head", SAMPLING, THREADS, PYTHON,
)  # fmt: skip


def components_of(spec: ModelSpec, *, threads: bool) -> tuple[str, ...]:
    """The components that a model has: fusions only where it borrows from other states, ``threads`` where the engine has
    its own. A baseline's own parts count as the model's."""
    absent = {FUSIONS} if spec.integration is None else set()
    absent |= set() if threads else {THREADS}
    return tuple(name for name in COMPONENTS if name not in absent)


@dataclass(frozen=True)
class Span:
    """A stretch of time in milliseconds since the step began; ``own_ms`` is without the spans inside of it."""

    component: str
    label: str
    start_ms: float
    total_ms: float
    own_ms: float


@dataclass(frozen=True)
class Step:
    """One step of a generation; the first is the prefill. ``spans[0]`` is the whole step, the others lie within."""

    spans: tuple[Span, ...]

    @property
    def total_ms(self) -> float:
        return self.spans[0].total_ms

    def components(self) -> dict[str, float]:
        """Milliseconds per component; they add up to the step."""
        found: dict[str, float] = defaultdict(float)
        for span in self.spans:
            found[span.component] += span.own_ms
        return dict(found)


class Meter(Protocol):
    """Tells where the time of each step of a generation went.

    ``fused`` says what is counted with a component beside what its name says.
    """

    method: str
    components: tuple[str, ...]
    fused: dict[str, str]

    def watching(self) -> AbstractContextManager[None]:
        """Around a generation that is profiled."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """Around one step, the first of which is the prefill."""
        ...

    def sampling(self) -> AbstractContextManager[None]:
        """Around the choice of the token, within a step."""
        ...

    def take(self) -> list[Step]:
        """The steps since the last call."""
        ...
