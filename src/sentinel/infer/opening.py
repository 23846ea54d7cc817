"""Which engine runs what, and from the name of a model to an engine that is ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sentinel.errors import InputError
from sentinel.formats.places import label, locate
from sentinel.infer.draft_choice import DraftChoice
from sentinel.infer.engine import Engine, warm_up
from sentinel.infer.levels import check_level
from sentinel.infer.native import NativeEngine, PackedWidth
from sentinel.infer.packed_cache import entry_of, keep, recall
from sentinel.infer.quantised import WEIGHTS_FILE, QuantisedModel, Ratios, is_quantised
from sentinel.models.origin import Origin
from sentinel.progress import say

if TYPE_CHECKING:
    from sentinel.formats.sources import LoadedModel
    from sentinel.infer.native import NativeWeights, Precision
    from sentinel.models.decoder import Decoder
    from sentinel.models.record import Record
    from sentinel.models.spec import ModelSpec
    from sentinel.models.tokenizer import TextTokenizer


Maker = Callable[["Decoder", int, str, "int | None"], Engine]  # of a decoder, level, precision and threads


def _eager(decoder: Decoder, level: int, precision: str, threads: int | None) -> Engine:
    from sentinel.infer.torch.eager import TorchEngine

    return TorchEngine(decoder, level)


def _static(decoder: Decoder, level: int, precision: str, threads: int | None) -> Engine:
    from sentinel.infer.torch.static import StaticTorchEngine

    return StaticTorchEngine(decoder)


def _native(decoder: Decoder, level: int, precision: str, threads: int | None) -> Engine:
    from sentinel.infer.pack import pack

    return _at_width(decoder, pack(decoder, cast("Precision", precision)), precision, threads)


def _at_width(decoder: Decoder, weights: NativeWeights, precision: str, threads: int | None) -> NativeEngine:
    """An engine of the decoder's packed weights, at the width that the decoder is set to."""
    from sentinel.infer.pack import pack_width

    engine = NativeEngine(weights, threads=threads)
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
) -> Engine:
    """An engine that runs ``decoder`` at an optimisation level, as pruned as it is set to be.

    ``draft`` names what proposes tokens to it (`Engine.draft`), see `DraftChoice.parse`. Raises `InputError` for a level
    that there is not on the decoder's device, or not in that precision, and for a draft that is no cheaper.
    """
    check_level(level)
    precision, device = check_precision(level, precision), decoder.device
    make = ENGINES.get((level, _kind(device.type), precision))
    if make is None:
        there = levels_on(device.type)
        raise InputError(f"level {level} runs on the CPU; on {device} there are levels {there[0]} to {there[-1]}")
    if draft is None:
        return make(decoder, level, precision, threads)
    choice = DraftChoice.parse(draft)
    choice.check_cheaper(precision, *_ratios_in_use(decoder))
    engine = make(decoder, level, precision, threads)
    if choice.precision is not None:
        engine.draft_by(make_engine(decoder, 3, precision=choice.precision, threads=threads), draft)
    else:
        engine.draft_by(narrower_engine(decoder, engine, choice.heads, choice.neurons, threads), draft)
    return engine


def narrower_engine(
    decoder: Decoder, engine: Engine, heads: float, neurons: float, threads: int | None = None
) -> Engine:
    """Another engine of what ``engine`` runs, at a stored width of its ``decoder``; packed weights are shared."""
    used = _ratios_in_use(decoder)
    decoder.set_width(heads, neurons)
    try:
        if engine.packed is not None:
            return _at_width(decoder, engine.packed, engine.precision, threads)
        return make_engine(decoder.narrowed(), engine.level, threads=threads)
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
) -> OpenedEngine:
    """An engine that runs ``model`` (hub id, folder, ``.gguf`` file or ``smollm2-135m``), compiled and warmed up.

    A quantised folder runs without torch; so does a model at level 3, which is quantised once and kept (`packed_cache`).
    ``level`` is 1 by default, 3 for a quantised folder; ``heads`` and ``neurons`` are the ratios of a stored width;
    ``draft`` is as in `make_engine`; ``narrower`` are ratios of further widths, to be run beside it.
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
        others = [found.engine(level, precision, *ratios, threads) for ratios in narrower]
        return _warm(found.engine(level, precision, heads, neurons, threads, draft), found, others)
    level = 1 if level is None else level
    precision = check_precision(level, precision)
    width = (heads, neurons)
    packed = level >= 2 and device == "cpu"
    if level == 3 and random_weights is None and packed and dtype not in ("bf16", "fp16"):
        return _open_kept(model, precision, width, threads, draft, narrower)
    chosen = dtype or ("auto" if packed else "fp32")
    loaded = _load(model, width, threads, random_weights=random_weights, device=device, dtype=chosen)
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
    model: str,
    width: Ratios,
    threads: int | None,
    random_weights: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> LoadedModel:
    import torch

    from sentinel.cores import physical_cores
    from sentinel.formats.sources import load

    torch.set_num_threads(threads or physical_cores())
    loaded = load(model, random_weights=random_weights, device=device, dtype=dtype)
    if any(width):
        loaded.decoder.set_width(*width)
    return loaded


def _open_kept(
    model: str,
    precision: str,
    width: Ratios,
    threads: int | None,
    draft: str | None,
    narrower: Sequence[Ratios],
) -> OpenedEngine:
    """Level 3 from packed weights that an earlier start has kept; without them, they are made and kept."""
    choice = None if draft is None else DraftChoice.parse(draft)
    if choice is not None:
        choice.check_cheaper(precision, *width)
    found = _kept(model, precision, width, threads)
    engine = found.engine(3, precision, *width, threads=threads)

    def at(ratios: Ratios) -> NativeEngine:
        narrow = NativeEngine(found.native, threads=threads)
        narrow.set_packed_width(_kept(model, precision, ratios, threads).stored(*ratios))
        return narrow

    if draft is not None and choice is not None:
        if choice.precision is not None:
            other = _kept(model, choice.precision, width, threads)
            engine.draft_by(other.engine(3, choice.precision, *width, threads=threads), draft)
        else:
            engine.draft_by(at((choice.heads, choice.neurons)), draft)
    return _warm(engine, found, [at(ratios) for ratios in narrower])


def _kept(model: str, precision: str, width: Ratios, threads: int | None) -> QuantisedModel:
    entry = entry_of(locate(model), precision, width)
    found = recall(entry) or _quantise(model, precision, width, threads, entry)
    found.name = label(model)
    return found


def _quantise(model: str, precision: str, width: Ratios, threads: int | None, entry: Path) -> QuantisedModel:
    from sentinel.infer.pack import pack, pack_width
    from sentinel.models.record import Quantised

    loaded = _load(model, width, threads)
    say(f"{loaded.name} is quantised to {precision} once, to be kept in {entry.parent} for the next start")
    weights = pack(loaded.decoder, cast("Precision", precision))
    widths = {width: pack_width(loaded.decoder, cast("Precision", precision))} if any(width) else {}
    record = loaded.record.then(Quantised(source=loaded.name, precision=precision))
    found = QuantisedModel(loaded.name, weights, loaded.tokenizer, record, widths)
    keep(entry, weights.n_byte, found.save)
    return found
