"""Engines of one model, compiled and quantised once for all suites of a run."""

from __future__ import annotations

from dataclasses import dataclass

from sentinel.infer.engines import Engine, make_engine
from sentinel.infer.generate import generate_tokens
from sentinel.measure.hugging_face import HuggingFaceReference
from sentinel.models.sources import LoadedModel
from sentinel.models.spec import ModelSpec
from sentinel.progress import working


@dataclass(frozen=True)
class Subject:
    """What is measured: an engine (or Hugging Face, where ``level`` is None), and the sizes of the model that it runs."""

    engine: Engine | HuggingFaceReference
    spec: ModelSpec
    level: int | None = None
    precision: str = "fp32"
    heads: float = 0.0
    neurons: float = 0.0

    @property
    def name(self) -> str:
        """Tells the subjects of one model apart."""
        pruned = [f"{ratio:.0%} {what}" for ratio, what in ((self.heads, "heads"), (self.neurons, "neurons")) if ratio]
        return ", ".join([self.engine.name, *pruned])

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read to decode one token at batch 1."""
        if isinstance(self.engine, HuggingFaceReference):
            return self.spec.weight_bytes_per_token()
        return self.engine.weight_bytes_per_token()

    def step_bytes(self, batch: int, context: float) -> int:
        """Bytes that one decode step reads at the least: weights once, keys and values of ``context`` positions."""
        kv = 4 if isinstance(self.engine, HuggingFaceReference) else self.engine.kv_bytes
        return self.weight_bytes + round(batch * context * self.spec.kv_bytes_per_position(kv))


class Engines:
    """Makes an engine when it is first asked for, and keeps it."""

    def __init__(self, loaded: LoadedModel, threads: int | None = None) -> None:
        self._loaded, self._threads = loaded, threads
        self._made: dict[tuple[int | None, str | None], Subject] = {}

    def hugging_face(self) -> Subject:
        """Hugging Face's own model with the same weights: the reference."""
        if (None, None) not in self._made:
            self._made[None, None] = Subject(HuggingFaceReference(self._loaded.decoder), self._loaded.spec)
        return self._made[None, None]

    def at(self, level: int, precision: str | None = None) -> Subject:
        """The engine of a level; ``precision`` is that of level 3."""
        if (level, precision) not in self._made:
            with working(f"Preparing level {level}"):
                engine = make_engine(self._loaded.decoder, level, precision=precision, threads=self._threads)
                list(generate_tokens(engine, [[0]], 1))  # compiles what is not compiled yet
            self._made[level, precision] = Subject(engine, self._loaded.spec, level, engine.precision)
        return self._made[level, precision]
