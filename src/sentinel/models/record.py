"""How a model was made: its steps, and the documents that it has seen on the way. It travels with the model.

A checkpoint keeps its record in ``config.json`` as the field ``record``. Whoever changes a model adds a step by
`Record.then`, whoever saves one passes its record on, and whoever judges one asks `Record.seen_documents`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sentinel.errors import InputError
from sentinel.plain import is_mapping, is_row

VERSION = 1
SELF = "self"  # among the names of texts: what the model wrote itself
Weights = Literal["real", "random"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One change of a model.

    ``source`` is the name of the model that was changed. ``texts`` are the names of the texts that it took,
    ``documents`` the fingerprints of what it was calibrated or trained on, ``held_out`` of what decided when to stop.
    """

    kind: ClassVar[str]
    source: str
    texts: str = ""
    documents: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    @property
    def learned(self) -> frozenset[str]:
        """Documents that went into the weights, those that another model passed on included."""
        return frozenset(self.documents)

    def describe(self) -> str:
        """The step in one line."""
        raise NotImplementedError

    def _text(self, tokens: int = 0) -> str:
        """What was read, as the end of a line; empty for a step that took no text."""
        count = len({*self.documents, *self.held_out})
        if not count:
            return ""
        amount = f"{tokens:,} tokens of " if tokens else ""
        return f"; text: {amount}{self.texts or 'unnamed texts'} ({count} document{'s' * (count > 1)})"


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Step):
    """A step that took text to calibrate or to learn by. ``own_text`` says how a model wrote what is its own of it (the
    model's weights, seed, sampling, the text's fingerprint); empty where nothing is."""

    own_text: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def _text(self, tokens: int = 0) -> str:
        said = super()._text(tokens)
        if not said or not self.own_text:
            return said
        return f"{said}, self being written by {self.own_text.get('model', 'the model')} itself"


@dataclass(frozen=True, kw_only=True)
class Pruned(_Calibrated):
    """Heads and neurons were removed: these shares (several for the levels of an elastic model).

    ``removal_ranks`` is by layer and head group the place in the removal order. ``tokens`` are those of calibration.
    """

    kind = "pruned"
    criterion: str
    heads: tuple[float, ...]
    neurons: tuple[float, ...]
    compensated: bool = False
    expanded_kv: bool = False
    elastic: bool = False
    tokens: int = 0
    removal_ranks: tuple[tuple[int, ...], ...] = ()

    def describe(self) -> str:
        shares = [
            f"{', '.join(f'{100 * ratio:g}' for ratio in ratios)} % of {what}"
            for what, ratios in (("heads", self.heads), ("neurons", self.neurons))
            if any(ratios)
        ]
        how = [self.criterion, *["compensated"] * self.compensated, *["grouped K/V repeated"] * self.expanded_kv]
        levels = " as stored levels" if self.elastic else ""
        return f"pruned from {self.source}: {' and '.join(shares) or 'nothing'}{levels}, {', '.join(how)}" + self._text(
            self.tokens
        )


@dataclass(frozen=True, kw_only=True)
class _Taught(Step):
    """A step that took another model; ``others_seen`` are the documents that this one had seen before."""

    others_seen: tuple[str, ...] = ()

    @property
    def learned(self) -> frozenset[str]:
        return frozenset({*self.documents, *self.others_seen})


@dataclass(frozen=True, kw_only=True)
class Recovered(_Taught, _Calibrated):
    """The model learned the predictions of ``teacher``. Divergences are on held-out text, in nats a token."""

    kind = "recovered"
    teacher: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    divergence_before: float | None = None
    divergence_after: float | None = None

    def describe(self) -> str:
        known = self.divergence_before is not None and self.divergence_after is not None
        fell = f", divergence {self.divergence_before:.3g} to {self.divergence_after:.3g}" if known else ""
        return f"recovered from {self.source} by {self.teacher}: {self.steps:,} steps{fell}" + self._text(self.tokens)


@dataclass(frozen=True, kw_only=True)
class Adapted(_Calibrated):
    """Pruned, regrown and trained in ``cycles`` down to ``budget``, its own source being the teacher."""

    kind = "adapted"
    budget: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    cycles: int = 0
    expanded_kv: bool = False

    def describe(self) -> str:
        count = f"{self.cycles} cycle{'s' * (self.cycles != 1)}"
        return f"adapted from {self.source} to a budget of {self.budget} in {count}{self._text()}"


@dataclass(frozen=True, kw_only=True)
class Integrated(_Taught):
    """The model got (or lost) skips and a baseline: a ``configuration`` of that ``rank``, None being full."""

    kind = "integrated"
    configuration: str
    rank: int | None = None
    baseline: str | None = None

    def describe(self) -> str:
        beside = f", beside {self.baseline}" if self.baseline else ""
        return f"integrated from {self.source}: configuration {self.configuration}{beside}{self._text()}"


@dataclass(frozen=True, kw_only=True)
class Quantised(_Calibrated):
    """Matrices were rounded to ``precision``; ``heads`` and ``neurons`` say which stored width was kept alone."""

    kind = "quantised"
    precision: str
    heads: float = 0.0
    neurons: float = 0.0
    tokens: int = 0

    def describe(self) -> str:
        level = f", width {self.heads:g}/{self.neurons:g} alone" if self.heads or self.neurons else ""
        return f"quantised from {self.source} to {self.precision}{level}" + self._text(self.tokens)


KINDS: dict[str, type[Step]] = {step.kind: step for step in (Pruned, Recovered, Adapted, Integrated, Quantised)}


@dataclass(frozen=True)
class Record:
    """The steps that made a model, first to last; none for a model as it was published.

    ``weights`` is "random" where they were drawn, so that the numbers mean nothing but the shape.
    """

    steps: tuple[Step, ...] = ()
    weights: Weights = "real"

    def then(self, step: Step) -> Record:
        """The record after one more step."""
        return dataclasses.replace(self, steps=(*self.steps, step))

    def seen_documents(self) -> frozenset[str]:
        """Fingerprints of all documents that the model was made with: a judgement by these would flatter it."""
        return self.learned_documents().union(*(step.held_out for step in self.steps))

    def learned_documents(self) -> frozenset[str]:
        """Fingerprints of the documents that went into the weights, by calibration, training or another model."""
        return frozenset[str]().union(*(step.learned for step in self.steps))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        steps = [{"kind": step.kind, **dataclasses.asdict(step)} for step in self.steps]
        return {"version": VERSION, "weights": self.weights, "steps": steps}

    @classmethod
    def from_dict(cls, data: object, source: object = "the record") -> Record:
        """Inverse of `to_dict`.

        Raises `InputError` that names ``source`` for another version, an unknown kind of step, and fields that are
        unknown, missing or of another type.
        """
        try:
            if not is_mapping(data) or set(data) != {"version", "weights", "steps"}:
                raise ValueError("it must hold version, weights and steps")
            if data["version"] != VERSION:
                raise ValueError(f"it has version {data['version']!r}; this version of sentinel reads {VERSION}")
            if data["weights"] not in typing.get_args(Weights):
                raise ValueError(f"weights are {data['weights']!r}, not real or random")
            if not is_row(data["steps"]):
                raise ValueError("steps must be a list")
            steps = [_step(entry, f"step {number}") for number, entry in enumerate(data["steps"], 1)]
        except ValueError as error:
            raise InputError(
                f"{source}: the record of how the model was made is damaged ({error}), so that seen text can't be "
                "told; make the model anew"
            ) from error
        return cls(tuple(steps), data["weights"])


def _step(data: object, where: str) -> Step:
    """One step of plain values."""
    if not is_mapping(data):
        raise ValueError(f"{where} is no object")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where} has kind {kind!r}; known are {', '.join(KINDS)}")
    fields = {field.name: field for field in dataclasses.fields(KINDS[kind])}
    values = {name: value for name, value in data.items() if name != "kind"}
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    wrong = sorted(set(values) - set(fields)) or sorted(needed - set(values))
    if wrong:
        raise ValueError(f"{where}, {kind}: field {wrong[0]} is {'unknown' if wrong[0] in values else 'missing'}")
    hints = typing.get_type_hints(KINDS[kind])
    return KINDS[kind](
        **{name: _typed(value, hints[name], f"{where}, {kind}: {name}") for name, value in values.items()}
    )


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as a field of type ``hint`` holds it; `ValueError` when it is of another type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and is_row(value):
        return tuple(_typed(item, inner[0], where) for item in value)
    if origin is Mapping and is_mapping(value):
        return dict(value)
    if origin is types.UnionType:  # "or None"
        return None if value is None else _typed(value, inner[0], where)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(hint, type) and type(value) is hint and hint is not float:
        return value
    raise ValueError(f"{where} is {value!r}")
