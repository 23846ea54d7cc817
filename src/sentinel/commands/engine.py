"""The engine that the arguments of a command name: model, level, precision and pruning level."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.arguments import load_model, set_pruning_level, warn_of_threads
from sentinel.commands.pruning import ratio
from sentinel.errors import InputError
from sentinel.models.origin import Origin

if TYPE_CHECKING:
    from sentinel.infer.engines import Engine
    from sentinel.models.tokenizer import TextTokenizer


@dataclass(frozen=True)
class OpenedEngine(Origin):
    """An engine that is ready, with the name and the kind of weights ("real" or "random") of its model."""

    engine: Engine
    tokenizer: TextTokenizer | None
    name: str
    weights: str


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Level, precision and pruning level; None where nothing was said."""
    parser.add_argument(
        "--level", type=int, metavar="0-3", help="optimisation level (default 1; of a quantised model 3)"
    )
    parser.add_argument("--precision", choices=("fp32", "int8", "int4"), help="of level 3: int8 (default) or int4")
    parser.add_argument("--heads", metavar="R", type=ratio, help="stored pruning level of an elastic model (default 0)")
    parser.add_argument("--neurons", metavar="R", type=ratio, help="likewise")


def open_engine(options: argparse.Namespace) -> OpenedEngine:
    """The engine that the arguments name; a quantised checkpoint is run without torch."""
    from sentinel.infer.engines import check_level, check_precision, make_engine

    if options.level is not None:
        check_level(options.level)
    folder = Path(options.model).expanduser()
    if folder.is_dir() and options.random_weights is None:
        from sentinel.infer.quantised import is_quantised

        if is_quantised(folder):
            return _quantised(options, folder)
    level = 1 if options.level is None else options.level
    precision = check_precision(level, options.precision)
    loaded = load_model(options)
    set_pruning_level(loaded.decoder, options.heads or 0.0, options.neurons or 0.0)
    engine = make_engine(loaded.decoder, level, precision=precision, threads=options.threads)
    return OpenedEngine(engine, loaded.tokenizer, loaded.name, loaded.weights)


def _quantised(options: argparse.Namespace, folder: Path) -> OpenedEngine:
    from sentinel.infer.cpu_engine import CpuEngine
    from sentinel.infer.quantised import load_level, load_quantised
    from sentinel.models.folder import read_config

    if options.device != "cpu":
        raise InputError(f"{options.model} is quantised, which runs on the CPU only; leave out --device")
    warn_of_threads(options.threads)
    weights, tokenizer = load_quantised(folder)
    if options.level not in (None, 3) or options.precision not in (None, weights.precision):
        raise InputError(f"{options.model} is quantised to {weights.precision}, so that only level 3 runs it so")
    engine = CpuEngine(weights, threads=options.threads)
    heads, neurons = options.heads or 0.0, options.neurons or 0.0
    if heads or neurons:
        engine.set_level(load_level(folder, weights, heads, neurons))
    kind = read_config(folder).get("weights", "real")
    return OpenedEngine(engine, tokenizer, folder.resolve().name, kind)
