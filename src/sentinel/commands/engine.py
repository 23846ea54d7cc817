"""The engine that the arguments of a command name: model, level, precision and pruning level."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sentinel.commands.arguments import warn_of_threads
from sentinel.commands.pruning import ratio

if TYPE_CHECKING:
    from sentinel.infer.opening import OpenedEngine


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Level, precision and pruning level; None where nothing was said."""
    parser.add_argument(
        "--level", type=int, metavar="0-3", help="optimisation level (default 1; of a quantised model 3)"
    )
    parser.add_argument("--precision", choices=("fp32", "int8", "int4"), help="of level 3: int8 (default) or int4")
    parser.add_argument("--heads", metavar="R", type=ratio, help="stored pruning level of an elastic model (default 0)")
    parser.add_argument("--neurons", metavar="R", type=ratio, help="likewise")


def open_engine(options: argparse.Namespace) -> OpenedEngine:
    """The engine that the arguments name."""
    from sentinel.infer import opening

    warn_of_threads(options.threads)
    return opening.open_engine(
        options.model,
        level=options.level,
        precision=options.precision,
        heads=options.heads or 0.0,
        neurons=options.neurons or 0.0,
        random_weights=options.random_weights,
        device=options.device,
        threads=options.threads,
    )
