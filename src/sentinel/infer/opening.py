"""Which engine runs what, and from the name of a model to an engine that is ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sentinel.errors import InputError
from sentinel.formats.places import label, locate
from sentinel.infer.draft_choice import DraftChoice
from sentinel.infer.engine import Engine, warm_up
from sentinel.infer.levels import check_kv, check_level
from sentinel.infer.native import NativeEngine, PackedWidth
from sentinel.infer.packed_cache import entry_of, keep, recall
from sentinel.infer.quantised import WEIGHTS_FILE, QuantisedModel, Ratios, is_quantised
from sentinel.models.origin import Origin
from sentinel.progress import say

if TYPE_CHECKING:
    from sentinel.formats.sources import LoadedModel
    from sentinel.infer.native import NativeWeights, Precision
    from sentinel.infer.native.kv_cache import KvKind
    from sentinel.models.decoder import Decoder
    from sentinel.models.record import Record
    from sentinel.models.spec import ModelSpec
    from sentinel.models.tokenizer import TextTokenizer


# Of a decoder, level, precision, threads and what keys and values are kept in.
Maker = Callable[["Decoder", int, str, "int | None", "KvKind | None"], Engine]


def _eager(decoder: Decoder, level: int, precision: str, threads: int | None, kv: KvKind | None) -> Engine:
    from sentinel.infer.torch.eager import TorchEngine

    return TorchEngine(decoder, level)


def _static(decoder: Decoder, level: int, precision: str, threads: int | None, kv: KvKind | None) -> Engine:
    from sentinel.infer.torch.static import StaticTorchEngine

    return StaticTorchEngine(decoder)


def _native(decoder: Decoder, level: int, precision: str, threads: int | None, kv: KvKind | None) -> Engine:
    from sentinel.infer.pack import pack

    return _at_width(decoder, pack(decoder, cast("Precision", precision)), precision, threads, kv)


def _at_width(
    decoder: Decoder, weights: NativeWeights, precision: str, threads: int | None, kv: KvKind | None
) -> NativeEngine:
    """An engine of the decoder's packed weights, at the width that the decoder is set to."""
    from sentinel.infer.pack import pack_width

    engine = NativeEngine(weights, threads=threads, kv=kv)
    width = pack_width(decoder, cast("Precision", precision))
    if width != PackedWidth.full(decoder.spec):
        engine.set_packed_width(width)
    return engine


CPU, ACCELERATOR = "cpu", "accelerator"  # kinds of device; the second is any that is not the CPU
# Which engine runs a level on a kind of device in a precision; the first precision of a level is its default.
ENGINES: dict[tuple[int, str, str], Maker] = {
    (0, CPU, "fp32"): _eager,
    (0, ACCELERATOR, "fp32"): _eager,
    (1, CPU, "fp32"): _eager,
    (1, ACCELERATOR, "fp32"): _eager,
    (2, CPU, "fp32"): _native,
    (2, ACCELERATOR, "fp32"): _static,
    (3, CPU, "int8"): _native,
    (3, CPU, "int4"): _native,
}


def levels_on(device: str) -> tuple[int, ...]:
    """The levels that there are on a device (``cpu``, ``cuda``, ``cuda:1``, ...)."""
    return tuple(sorted({level for level, kind, _ in ENGINES if kind == _kind(device)}))


def check_precision(level: int, precision: str | None) -> str:
    """The precision that a level runs in, by default its first; `InputError` for one that it does not have."""
    allowed = list(dict.fromkeys(name for number, _, name in ENGINES if number == level))
    if precision is not None and precision not in allowed:
        raise InputError(f"level {level} runs in {' or '.join(allowed)}, not in {precision}")
    return precision or allowed[0]


def make_engine(
    decoder: Decoder,
    level: int,
    *,
    precision: str | None = None,
    threads: int | None = None,
    draft: str | None = None,
    kv: str | None = None,
) -> Engine:
    """An engine that runs ``decoder`` at an optimisation level, as pruned as it is set to be.

    ``kv`` is what level 3 keeps keys and values in, that of its draft too: half (default) or int8, see `check_kv`.
    ``draft`` names what proposes tokens to it (`Engine.draft`), see `DraftChoice.parse`. Raises `InputError` for a level
    that there is not on the decoder's device, or not in that precision, and for a draft that is no cheaper.
    """
    check_level(level)
    precision, device = check_precision(level, precision), decoder.device
    make = ENGINES.get((level, _kind(device.type), precision))
    if make is None:
        there = levels_on(device.type)
        raise InputError(f"level {level} runs on the CPU; on {device} there are levels {there[0]} to {there[-1]}")
    cached = check_kv(kv, level, device.type)
    if draft is None:
        return make(decoder, level, precision, threads, cached)
    choice = DraftChoice.parse(draft)
    choice.check_cheaper(precision, *_ratios_in_use(decoder))
    engine = make(decoder, level, precision, threads, cached)
    if choice.precision is not None:
        engine.draft_by(make_engine(decoder, 3, precision=choice.precision, threads=threads, kv=kv), draft)
    else:
        engine.draft_by(narrower_engine(decoder, engine, choice.heads, choice.neurons, threads, kv), draft)
    return engine


def narrower_engine(
    decoder: Decoder,
    engine: Engine,
    heads: float,
    neurons: float,
    threads: int | None = None,
    kv: str | None = None,
) -> Engine:
    """Another engine of what ``engine`` runs, at a stored width of its ``decoder``; packed weights are shared."""
    used = _ratios_in_use(decoder)
    decoder.set_width(heads, neurons)
    try:
        if engine.packed is not None:
            cached = check_kv(kv, engine.level, "cpu")
            return _at_width(decoder, engine.packed, engine.precision, threads, cached)
        return make_engine(decoder.narrowed(), engine.level, threads=threads, kv=kv)
    finally:
        decoder.set_width(*used)


def _ratios_in_use(decoder: Decoder) -> tuple[float, float]:
    return (0.0, 0.0) if decoder.current is None else decoder.current.key


def _kind(device: str) -> str:
    return CPU if device == CPU else ACCELERATOR


@dataclass(frozen=True)
class OpenedEngine(Origin):
    """An engine that is ready, with the name, the tokenizer and the record of its model.

    ``narrower`` are engines of the same weights at the stored widths that were asked for.
    """

    engine: Engine
    tokenizer: TextTokenizer | None
    name: str
    record: Record
    narrower: tuple[Engine, ...] = ()

    @property
    def spec(self) -> ModelSpec:
        return self.engine.spec


def open_engine(
    model: str,
    *,
    level: int | None = None,
    precision: str | None = None,
    heads: float = 0.0,
    neurons: float = 0.0,
    random_weights: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    draft: str | None = None,
    dtype: str | None = None,
    narrower: Sequence[Ratios] = (),
    kv: str | None = None,
) -> OpenedEngine:
    """An engine that runs ``model`` (hub id, folder, ``.gguf`` file or ``smollm2-135m``), compiled and warmed up.

    A quantised folder runs without torch; so does a model at level 3, which is quantised once and kept (`packed_cache`).
    ``level`` is 1 by default, 3 for a quantised folder; ``heads`` and ``neurons`` are the ratios of a stored width;
    ``draft`` and ``kv`` are as in `make_engine`; ``narrower`` are ratios of further widths, to be run beside it.
    ``dtype`` is that of the weights that are loaded, see `sources.load`: what PyTorch runs computes in it, by default fp32.
    Levels 2 and 3 on the CPU compute in types of their own, so that by default the weights stay as they are stored.
    Raises `InputError` for what the model or this machine can't do.
    """
    if level is not None:
        check_level(level)
    if draft is not None:
        DraftChoice.parse(draft)  # before anything is loaded
    folder = Path(model).expanduser()
    if folder.is_dir() and random_weights is None and is_quantised(folder):
        if device != "cpu":
            raise InputError(f"{model} is quantised, which runs on the CPU only; leave out --device")
        refuse_dtype(model, dtype)
        found = QuantisedModel.load(folder)
        others = [found.engine(level, precision, *ratios, threads, kv=kv) for ratios in narrower]
        return _warm(found.engine(level, precision, heads, neurons, threads, draft, kv), found, others)
    level = 1 if level is None else level
    precision = check_precision(level, precision)
    width, cached = (heads, neurons), check_kv(kv, level, device)
    if level >= 2 and device == "cpu":
        wanted = _Wanted(model, random_weights, dtype, width, threads, cached)
        return _open_packed(wanted, level, precision, draft, narrower)
    loaded = _load(model, width, threads, random_weights, device, dtype or "fp32")
    engine = make_engine(loaded.decoder, level, precision=precision, threads=threads, draft=draft)
    others = [narrower_engine(loaded.decoder, engine, *ratios, threads) for ratios in narrower]
    return _warm(engine, loaded, others)


def refuse_dtype(model: str, dtype: str | None) -> None:
    """Raise `InputError` for a type that is asked of a quantised model."""
    if dtype not in (None, "auto"):
        raise InputError(f"{model} is quantised, so that its weights have no other type; leave out dtype")


def _warm(engine: Engine, origin: Origin, narrower: Sequence[Engine]) -> OpenedEngine:
    for each in (engine, *([engine.draft] if engine.draft is not None else []), *narrower):
        warm_up(each)
    return OpenedEngine(engine, origin.tokenizer, origin.name, origin.record, tuple(narrower))


def is_kept(model: str, precision: str) -> bool:
    """True when level 3 of ``model`` at its whole width starts from packed weights that were kept."""
    return (entry_of(locate(model), precision, (0.0, 0.0)) / WEIGHTS_FILE).exists()


def _load(
    model: str, width: Ratios, threads: int | None, random_weights: int | None, device: str, dtype: str
) -> LoadedModel:
    import torch

    from sentinel.cores import physical_cores
    from sentinel.formats.sources import load

    torch.set_num_threads(threads or physical_cores())
    loaded = load(model, random_weights=random_weights, device=device, dtype=dtype)
    if any(width):
        loaded.decoder.set_width(*width)
    return loaded


@dataclass(frozen=True)
class _Wanted:
    """Which model is packed, at which stored width, and run by how many threads with which KV cache."""

    model: str
    random_weights: int | None
    dtype: str | None
    width: Ratios
    threads: int | None
    kv: KvKind | None

    @property
    def kept(self) -> bool:
        """True for weights that may be kept: those of the model, as they are stored."""
        return self.random_weights is None and self.dtype not in ("bf16", "fp16")


def _open_packed(
    wanted: _Wanted, level: int, precision: str, draft: str | None, narrower: Sequence[Ratios]
) -> OpenedEngine:
    """Levels 2 and 3 on the CPU. What level 3 packs is kept, and an earlier start may have kept it."""
    width, threads, kv = wanted.width, wanted.threads, wanted.kv
    choice = None if draft is None else DraftChoice.parse(draft)
    if choice is not None:
        choice.check_cheaper(precision, *width)
    found = _packed(wanted, level, precision)
    engine = found.at_width(*width, threads, kv)

    def at(ratios: Ratios) -> NativeEngine:
        narrow = NativeEngine(found.native, threads=threads, kv=kv)
        narrow.set_packed_width(_packed(replace(wanted, width=ratios), level, precision).stored(*ratios))
        return narrow

    if draft is not None and choice is not None:
        if choice.precision is not None:
            engine.draft_by(_packed(wanted, 3, choice.precision).at_width(*width, threads, kv), draft)
        else:
            engine.draft_by(at((choice.heads, choice.neurons)), draft)
    return _warm(engine, found, [at(ratios) for ratios in narrower])


def _packed(wanted: _Wanted, level: int, precision: str) -> QuantisedModel:
    if level < 3 or not wanted.kept:
        return _pack(wanted, precision)
    entry = entry_of(locate(wanted.model), precision, wanted.width)
    found = recall(entry)
    if found is None:
        found = _pack(wanted, precision, kept_in=entry)
        keep(entry, found.native.n_byte, found.save)
    found.name = label(wanted.model)
    return found


def _pack(wanted: _Wanted, precision: str, kept_in: Path | None = None) -> QuantisedModel:
    """The weights, read and packed tensor by tensor."""
    import torch

    from sentinel.cores import physical_cores
    from sentinel.formats.sources import open_stored
    from sentinel.infer.pack import pack, pack_width, tell_memory
    from sentinel.models.record import Quantised

    torch.set_num_threads(wanted.threads or physical_cores())
    given = open_stored(wanted.model, random_weights=wanted.random_weights, dtype=wanted.dtype or "auto")
    stored, kind, record = given.stored, cast("Precision", precision), given.record
    stored.set_width(*wanted.width)
    if kept_in is not None:
        say(f"{given.name} is quantised to {precision} once, to be kept in {kept_in.parent} for the next start")
        record = record.then(Quantised(source=given.name, precision=precision))
    tell_memory(stored.spec, kind)
    weights = pack(stored, kind)
    widths = {wanted.width: pack_width(stored, kind)} if any(wanted.width) else {}
    return QuantisedModel(given.name, weights, given.tokenizer, record, widths, description=given.description)
