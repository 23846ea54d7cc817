"""The engine that the arguments of a command name: model, level, precision and width."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel.commands.arguments import add_dtype, warn_of_threads
from sentinel.commands.pruning import ratio

if TYPE_CHECKING:
    from sentinel.infer.opening import OpenedEngine


@dataclass(frozen=True)
class EngineChoice:
    """How a model is run; None where nothing was said."""

    level: int | None
    precision: str | None
    heads: float | None
    neurons: float | None


def chosen_engine(options: argparse.Namespace) -> EngineChoice:
    """What the arguments say."""
    return EngineChoice(options.level, options.precision, options.heads, options.neurons)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Level, precision and width; None where nothing was said."""
    parser.add_argument(
        "--level", type=int, metavar="0-3", help="optimisation level (default 1; of a quantised model 3)"
    )
    parser.add_argument("--precision", choices=("fp32", "int8", "int4"), help="of level 3: int8 (default) or int4")
    parser.add_argument("--heads", metavar="R", type=ratio, help="stored width of an elastic model (default 0)")
    parser.add_argument("--neurons", metavar="R", type=ratio, help="likewise")
    parser.add_argument(
        "--kv",
        choices=("half", "int8"),
        help="of level 3: keys and values in half precision (default), or int8, half as large",
    )
    add_dtype(parser, "fp32, in which PyTorch then computes; auto where levels 2 and 3 pack them")


def open_engine(
    options: argparse.Namespace,
    choice: EngineChoice | None = None,
    draft: str | None = None,
    narrower: Sequence[tuple[float, float]] = (),
) -> OpenedEngine:
    """The engine that the arguments name; ``choice`` in place of their own, ``draft`` proposes tokens to it, ``narrower``
    are ratios of further widths."""
    from sentinel.infer import opening

    choice = choice or chosen_engine(options)
    warn_of_threads(options.threads)
    return opening.open_engine(
        options.model,
        level=choice.level,
        precision=choice.precision,
        heads=choice.heads or 0.0,
        neurons=choice.neurons or 0.0,
        random_weights=options.random_weights,
        device=options.device,
        threads=options.threads,
        draft=draft,
        dtype=options.dtype,
        narrower=narrower,
        kv=options.kv,
    )
