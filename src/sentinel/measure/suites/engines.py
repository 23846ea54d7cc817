"""Engines of one model at any width, compiled and quantised once for all suites of a run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

from sentinel.adapt.pruning.compact import expand_kv, in_nested_order, select
from sentinel.adapt.pruning.criteria import criterion_named
from sentinel.adapt.pruning.plan import RemovalOrder
from sentinel.adapt.pruning.subject import Subject as Ranked
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer.engine import Engine, warm_up
from sentinel.infer.native import NativeEngine, NativeWeights, Precision
from sentinel.infer.native.reading import MemoryReader
from sentinel.infer.opening import check_precision, make_engine
from sentinel.infer.pack import pack
from sentinel.measure.hugging_face import HuggingFaceReference
from sentinel.measure.method import READ, Generator
from sentinel.measure.results import Sample
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import name_of
from sentinel.models.spec import ModelSpec
from sentinel.progress import working

READ_BYTES = 1e9  # of one reading, all repeats together: some 50 ms


@dataclass(frozen=True)
class Subject:
    """What is measured: an engine (or one of others, where ``level`` is None), and the sizes of the model that it runs.

    ``configuration`` says which of several models that is.
    """

    engine: Engine | Generator
    spec: ModelSpec
    level: int | None = None
    precision: str = "fp32"
    heads: float = 0.0
    neurons: float = 0.0
    configuration: str | None = None

    @property
    def name(self) -> str:
        """Tells the subjects of one model apart."""
        pruned = [f"{ratio:.0%} {what}" for ratio, what in ((self.heads, "heads"), (self.neurons, "neurons")) if ratio]
        return ", ".join([self.engine.name, *pruned, *([self.configuration] if self.configuration else [])])

    @property
    def own_engine(self) -> Engine:
        """The engine, where it is one of ours."""
        assert isinstance(self.engine, Engine)
        return self.engine


class Engines:
    """Makes an engine when it is first asked for, and keeps it.

    Pruned ones run the first heads and neurons of weights in nested order, as an elastic model does: as fast as a compacted
    model, without a copy for every level. The order of removal is random, which is right for speed. ``expand_kv`` repeats
    grouped keys and values first, so that single heads can go.
    """

    def __init__(self, loaded: LoadedModel, threads: int | None = None) -> None:
        self._loaded, self.threads = loaded, threads
        self._made: dict[tuple[object, ...], Subject] = {}
        self._nested: dict[bool, tuple[Decoder, RemovalOrder]] = {}
        self._packed: dict[tuple[bool, str], NativeWeights] = {}
        self._reader: MemoryReader | None = None

    def reading(self, n_byte: int) -> Sample:
        """GB/s at which this machine's memory is read now, by as many threads as the engines have and as a step reads its
        weights (`MemoryReader`), over ``n_byte`` bytes; empty for a model that is elsewhere.
        """
        if self._loaded.decoder.device.type != "cpu":
            return {}
        if self._reader is None:
            self._reader = MemoryReader(self.threads)
        self._reader.seconds(n_byte)  # wakes the threads, and leaves in the caches what a step before would
        repeats = min(max(2, round(READ_BYTES / n_byte)), 1000)
        return {READ: n_byte / self._reader.seconds(n_byte, repeats) / 1e9}

    def hugging_face(self) -> Subject:
        """Hugging Face's own model with the same weights, not pruned: the reference."""
        if () not in self._made:
            theirs = HuggingFaceReference(self._loaded.decoder)
            self._made[()] = Subject(theirs, self._loaded.spec, precision=name_of(self._loaded.decoder.dtype))
        return self._made[()]

    def at(
        self,
        level: int,
        precision: str | None = None,
        *,
        heads: float = 0.0,
        neurons: float = 0.0,
        expand_kv: bool = False,
    ) -> Subject:
        """The engine of a level at a width; ``precision`` is that of level 3.

        Raises `InputError` when there are no heads or neurons to remove.
        """
        precision = check_precision(level, precision)
        pruned = bool(heads or neurons)
        key = (level, precision, heads, neurons, expand_kv and pruned)
        if key not in self._made:
            with working(f"Preparing level {level}"):
                subject = self._pruned(*key) if pruned else self._whole(level, precision)
                warm_up(subject.own_engine)
            self._made[key] = subject
        return self._made[key]

    def drafted(self, level: int, draft: str) -> Subject:
        """The engine of a level to which ``draft`` proposes tokens, see `make_engine`."""
        key = (level, draft)
        if key not in self._made:
            with working(f"Preparing level {level}, draft {draft}"):
                engine = make_engine(self._loaded.decoder, level, threads=self.threads, draft=draft)
                warm_up(engine)
                assert engine.draft is not None
                warm_up(engine.draft)
            self._made[key] = Subject(engine, self._loaded.spec, level)
        return self._made[key]

    def _whole(self, level: int, precision: str) -> Subject:
        engine = make_engine(self._loaded.decoder, level, precision=precision, threads=self.threads)
        return Subject(engine, self._loaded.spec, level, engine.precision)

    def _pruned(self, level: int, precision: str, heads: float, neurons: float, expand: bool) -> Subject:
        spec = self._loaded.spec
        if heads and not spec.n_head_total:
            raise InputError(f"{self._loaded.name} has no attention heads left to remove")
        if neurons and not any(layer.intermediate_size for layer in spec.layers):
            raise InputError(f"{self._loaded.name} has no MLP neurons left to remove")
        nested, order = self._in_order(expand)
        plan = order.plan(heads, neurons)
        smaller = plan.width.of(nested.spec)
        made = functools.partial(Subject, spec=smaller, level=level, heads=heads, neurons=neurons)
        if level >= 2 and nested.device.type != "cpu":
            kept = select(nested, plan.width.kept)
            engine = make_engine(kept, level, precision=precision)
            return made(engine, precision=engine.precision)
        engine = make_engine(nested, level) if level < 2 else self._native(nested, precision, expand)
        engine.set_width(plan.width)
        return made(engine, precision=engine.precision)

    def _native(self, nested: Decoder, precision: str, expand: bool) -> Engine:
        if (expand, precision) not in self._packed:
            self._packed[expand, precision] = pack(nested, cast(Precision, precision))
        return NativeEngine(self._packed[expand, precision], threads=self.threads)

    def _in_order(self, expand: bool) -> tuple[Decoder, RemovalOrder]:
        if expand not in self._nested:
            dense = expand_kv(self._loaded.decoder) if expand else self._loaded.decoder
            order = criterion_named("random").order(Ranked(dense), 1.0, 1.0)
            self._nested[expand] = in_nested_order(dense, order), order
        return self._nested[expand]
