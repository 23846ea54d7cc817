"""From the name of a model to an engine that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sentinel.errors import InputError
from sentinel.formats.places import label, locate
from sentinel.infer.engine import check_level, check_precision, make_engine, warm_up
from sentinel.infer.packed_cache import entry_of, keep, recall
from sentinel.infer.quantised import WEIGHTS_FILE, QuantisedModel, is_quantised
from sentinel.models.origin import Origin
from sentinel.progress import say

if TYPE_CHECKING:
    from sentinel.formats.sources import LoadedModel
    from sentinel.infer.engine import Engine
    from sentinel.infer.native import Precision
    from sentinel.models.record import Record
    from sentinel.models.spec import ModelSpec
    from sentinel.models.tokenizer import TextTokenizer


@dataclass(frozen=True)
class OpenedEngine(Origin):
    """An engine that is ready, with the name, the tokenizer and the record of its model."""

    engine: Engine
    tokenizer: TextTokenizer | None
    name: str
    record: Record

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
) -> OpenedEngine:
    """An engine that runs ``model`` (hub id, folder, ``.gguf`` file or ``smollm2-135m``), compiled and warmed up.

    A quantised folder runs without torch; so does a model at level 3, which is quantised once and kept (`packed_cache`).
    ``level`` is 1 by default, 3 for a quantised folder; ``heads`` and ``neurons`` are the ratios of a stored width.
    Raises `InputError` for what the model or this machine can't do.
    """
    if level is not None:
        check_level(level)
    folder = Path(model).expanduser()
    if folder.is_dir() and random_weights is None and is_quantised(folder):
        if device != "cpu":
            raise InputError(f"{model} is quantised, which runs on the CPU only; leave out --device")
        found = QuantisedModel.load(folder)
        return _warm(found.engine(level, precision, heads, neurons, threads), found)
    level = 1 if level is None else level
    precision = check_precision(level, precision)
    width = (heads, neurons)
    if level == 3 and random_weights is None and device == "cpu":
        return _open_kept(model, precision, width, threads)
    loaded = _load(model, width, threads, random_weights=random_weights, device=device)
    return _warm(make_engine(loaded.decoder, level, precision=precision, threads=threads), loaded)


def _warm(engine: Engine, origin: Origin) -> OpenedEngine:
    warm_up(engine)
    return OpenedEngine(engine, origin.tokenizer, origin.name, origin.record)


def is_kept(model: str, precision: str) -> bool:
    """True when level 3 of ``model`` at its whole width starts from packed weights that were kept."""
    return (entry_of(locate(model), precision, (0.0, 0.0)) / WEIGHTS_FILE).exists()


def _load(
    model: str, width: tuple[float, float], threads: int | None, random_weights: int | None = None, device: str = "cpu"
) -> LoadedModel:
    import torch

    from sentinel.cores import physical_cores
    from sentinel.formats.sources import load

    torch.set_num_threads(threads or physical_cores())
    loaded = load(model, random_weights=random_weights, device=device)
    if any(width):
        loaded.decoder.set_width(*width)
    return loaded


def _open_kept(model: str, precision: str, width: tuple[float, float], threads: int | None) -> OpenedEngine:
    """Level 3 from packed weights that an earlier start has kept; without them, they are made and kept."""
    entry = entry_of(locate(model), precision, width)
    found = recall(entry) or _quantise(model, precision, width, threads, entry)
    found.name = label(model)
    return _warm(found.engine(3, precision, *width, threads=threads), found)


def _quantise(
    model: str, precision: str, width: tuple[float, float], threads: int | None, entry: Path
) -> QuantisedModel:
    from sentinel.infer.cpu_engine import pack, pack_width
    from sentinel.models.record import Quantised

    loaded = _load(model, width, threads)
    say(f"{loaded.name} is quantised to {precision} once, to be kept in {entry.parent} for the next start")
    weights = pack(loaded.decoder, cast("Precision", precision))
    widths = {width: pack_width(loaded.decoder, cast("Precision", precision))} if any(width) else {}
    record = loaded.record.then(Quantised(source=loaded.name, precision=precision))
    found = QuantisedModel(loaded.name, weights, loaded.tokenizer, record, widths)
    keep(entry, weights.n_byte, found.save)
    return found
