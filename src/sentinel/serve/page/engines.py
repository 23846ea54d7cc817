"""Engines of one model at every level, width and mask that it has. They share its weights; none sees another's dial."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sentinel.errors import InputError
from sentinel.infer.engine import Engine
from sentinel.infer.native import NativeEngine, NativeWeights, PackedWidth, Precision
from sentinel.infer.native.kv_cache import KvKind
from sentinel.infer.opening import ENGINES, levels_on, make_engine
from sentinel.infer.quantised import QuantisedModel, Ratios, stored_ratios
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

if TYPE_CHECKING:
    from sentinel.api.model import Model
    from sentinel.models.decoder import Decoder

MASKING = 1  # the level whose gates a mask sets
WHOLE: Ratios = (0.0, 0.0)


@dataclass(frozen=True)
class Dial:
    """How the model is run: level and precision, the stored width by its ratios, and ``masked`` heads (layer, head)."""

    level: int
    precision: str
    ratios: Ratios = WHOLE
    masked: frozenset[tuple[int, int]] = frozenset()


class Engines(ABC):
    """Engines of one model. ``levels`` are pairs of level and precision, ``widths`` those stored, the whole among them."""

    def __init__(
        self,
        spec: ModelSpec,
        levels: Sequence[tuple[int, str]],
        widths: dict[Ratios, Width],
        threads: int | None,
        kv: KvKind | None,
    ) -> None:
        self.spec, self.levels, self.threads = spec, tuple(levels), threads
        self._kv: KvKind | None = kv
        self.widths = {ratios: widths[ratios] for ratios in sorted(widths)}
        self._lock = threading.Lock()

    @property
    def unpruned(self) -> Dial:
        """The whole model, at level 1 where it has that."""
        level = next((one for one in self.levels if one[0] == MASKING), self.levels[0])
        return Dial(*level)

    def dial(self, level: int | None, precision: str | None, ratios: Ratios) -> Dial:
        """That dial, with `unpruned`'s level and the level's first precision where nothing is said. Raises as `check`."""
        level = self.unpruned.level if level is None else level
        first = next((name for number, name in self.levels if number == level), "")
        dial = Dial(level, precision or first, (round(ratios[0], 4), round(ratios[1], 4)))
        self.check(dial)
        return dial

    def check(self, dial: Dial) -> None:
        """Raise `InputError` for a level, a width or a head that there is not, and for masks at another level than 1."""
        if (dial.level, dial.precision) not in self.levels:
            known = ", ".join(f"{level} {precision}" for level, precision in self.levels)
            wanted = f"{dial.level} {dial.precision}".strip()
            raise InputError(f"level {wanted} is not one of this model here; its levels are {known}")
        if dial.ratios not in self.widths:
            known = ", ".join(f"{heads:g}/{neurons:g}" for heads, neurons in self.widths)
            raise InputError(f"width {dial.ratios[0]:g}/{dial.ratios[1]:g} is not stored; stored are {known}")
        if dial.masked and dial.level != MASKING:
            raise InputError(
                f"heads are masked at level {MASKING}, by their gates; at level {dial.level} there are none"
            )
        groups = self.widths[dial.ratios].groups
        for layer, head in dial.masked:
            if not (0 <= layer < self.spec.n_layer and 0 <= head < groups[layer] * self._group_size(layer)):
                raise InputError(f"there is no head {head} in layer {layer} at this width")

    def heads(self, ratios: Ratios) -> list[int]:
        """How many heads of each layer take part at a stored width."""
        return [count * self._group_size(layer) for layer, count in enumerate(self.widths[ratios].groups)]

    def _group_size(self, layer: int) -> int:
        return self.spec.layers[layer].group_size if self.spec.layers[layer].n_kv_head else 0

    def engine(self, dial: Dial) -> Engine:
        """A new engine that runs the model so. Raises `InputError` for what `check` refuses."""
        self.check(dial)
        with self._lock:
            return self._made(dial)

    @abstractmethod
    def _made(self, dial: Dial) -> Engine:
        """An engine for a dial that was checked; one at a time."""


class QuantisedEngines(Engines):
    """Those of a quantised folder: level 3 at the stored widths."""

    def __init__(self, model: QuantisedModel, threads: int | None, kv: KvKind | None) -> None:
        self._model = model
        stored: Iterable[Ratios] = model.widths if model.folder is None else stored_ratios(model.folder)
        packed = {(round(h, 4), round(n, 4)): model.stored(h, n) for h, n in stored}
        self._packed = {**packed, WHOLE: PackedWidth.full(model.spec)}
        widths = {ratios: one.width for ratios, one in self._packed.items()}
        super().__init__(model.spec, [(3, model.native.precision)], widths, threads, kv)

    def _made(self, dial: Dial) -> Engine:
        return _native(self._model.native, self._packed[dial.ratios], dial.ratios, self.threads, self._kv)


class DecoderEngines(Engines):
    """Those of a decoder: every level of its device. The decoder itself is never run, so that a width can be set on it."""

    def __init__(self, decoder: Decoder, threads: int | None, kv: KvKind | None) -> None:
        import torch

        from sentinel.cores import physical_cores

        torch.set_num_threads(threads or physical_cores())
        here = levels_on(decoder.device.type)
        levels = dict.fromkeys((level, precision) for level, _, precision in ENGINES if level in here)
        widths = {stored.key: stored.width for stored in decoder.widths}
        super().__init__(decoder.spec, list(levels), {WHOLE: Width.full(decoder.spec), **widths}, threads, kv)
        self._decoder = decoder
        self._narrow: tuple[Ratios, Decoder] = (WHOLE, decoder)  # the last one that was cut
        self._weights: dict[str, NativeWeights] = {}
        self._packed: dict[tuple[str, Ratios], PackedWidth] = {}

    def _made(self, dial: Dial) -> Engine:
        if dial.level >= 2 and self._decoder.device.type == "cpu":
            return self._made_native(cast("Precision", dial.precision), dial.ratios)
        if self._narrow[0] != dial.ratios:
            self._narrow = (dial.ratios, self._decoder.at_width(*dial.ratios))
        decoder = masked_copy(self._narrow[1], dial.masked)
        return make_engine(decoder, dial.level, precision=dial.precision, threads=self.threads)

    def _made_native(self, precision: Precision, ratios: Ratios) -> Engine:
        from sentinel.infer.pack import pack, pack_width

        if precision not in self._weights:
            self._weights[precision] = pack(self._decoder, precision)
        if (precision, ratios) not in self._packed:
            self._decoder.set_width(*ratios)
            try:
                self._packed[precision, ratios] = pack_width(self._decoder, precision)
            finally:
                self._decoder.set_width(*WHOLE)
        kv = None if precision == "fp32" else self._kv  # of level 3 alone
        return _native(self._weights[precision], self._packed[precision, ratios], ratios, self.threads, kv)


def engines_of(model: Model, threads: int | None = None, kv: KvKind | None = None) -> Engines:
    """The engines of a model that was loaded: ``threads`` by default as many as physical cores, ``kv`` what level 3 keeps
    keys and values in."""
    if model.quantised is not None:
        return QuantisedEngines(model.quantised, threads, kv)
    return DecoderEngines(model.decoder, threads, kv)


def masked_copy(decoder: Decoder, masked: Iterable[tuple[int, int]]) -> Decoder:
    """A decoder of the same tensors, in which nothing is copied but the gates of layers with a ``masked`` head: 0 there."""
    from sentinel.models.decoder import Decoder

    state = {name: tensor.detach() for name, tensor in decoder.whole_state().items()}
    for layer, head in masked:
        name = f"layers.{layer}.attn.gate"
        state[name] = state[name].clone()
        state[name][head] = 0.0
    other = Decoder.empty(decoder.spec)
    other.record = decoder.record
    other.load_state_dict(state, assign=True)
    return other.eval()


def _native(
    weights: NativeWeights, width: PackedWidth, ratios: Ratios, threads: int | None, kv: KvKind | None
) -> NativeEngine:
    engine = NativeEngine(weights, threads=threads, kv=kv)
    if ratios != WHOLE:
        engine.set_packed_width(width)
    return engine
