"""From the name of a model to an engine that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.errors import InputError
from sentinel.infer.engines import check_level, check_precision, make_engine
from sentinel.infer.quantised import is_quantised, load_level, load_quantised
from sentinel.models.folder import read_record
from sentinel.models.origin import Origin

if TYPE_CHECKING:
    from sentinel.infer.engines import Engine
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
    """An engine that runs ``model`` (hub id, folder, ``.gguf`` file or ``smollm2-135m``); a quantised folder runs without
    torch.

    ``level`` is 1 by default, 3 for a quantised folder; ``heads`` and ``neurons`` are the ratios of a stored width.
    Raises `InputError` for what the model or this machine can't do.
    """
    if level is not None:
        check_level(level)
    folder = Path(model).expanduser()
    if folder.is_dir() and random_weights is None and is_quantised(folder):
        if device != "cpu":
            raise InputError(f"{model} is quantised, which runs on the CPU only; leave out --device")
        return _open_quantised(folder, level, precision, (heads, neurons), threads)
    import torch

    from sentinel.cores import physical_cores
    from sentinel.models.elastic import require_levels
    from sentinel.models.sources import load

    level = 1 if level is None else level
    precision = check_precision(level, precision)
    torch.set_num_threads(threads or physical_cores())
    loaded = load(model, random_weights=random_weights, device=device)
    if heads or neurons:
        require_levels(loaded.decoder).set_level(heads, neurons)
    engine = make_engine(loaded.decoder, level, precision=precision, threads=threads)
    return OpenedEngine(engine, loaded.tokenizer, loaded.name, loaded.record)


def _open_quantised(
    folder: Path, level: int | None, precision: str | None, width: tuple[float, float], threads: int | None
) -> OpenedEngine:
    from sentinel.infer.cpu_engine import CpuEngine

    weights, tokenizer = load_quantised(folder)
    if level not in (None, 3) or precision not in (None, weights.precision):
        raise InputError(f"{folder} is quantised to {weights.precision}, so that only level 3 runs it so")
    engine = CpuEngine(weights, threads=threads)
    if any(width):
        engine.set_level(load_level(folder, weights, *width))
    return OpenedEngine(engine, tokenizer, folder.resolve().name, read_record(folder))
