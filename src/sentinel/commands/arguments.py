"""Arguments that several commands share, with one meaning and one check each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from sentinel.progress import say

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel.models.decoder import Decoder
    from sentinel.models.sources import LoadedModel


LARGEST = 2**31 - 1  # beyond it, seeds and sizes overflow somewhere


def whole_number(minimum: int) -> Callable[[str], int]:
    """Argument type: a whole number of at least ``minimum``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is too small; give at least {minimum}")
        if value > LARGEST:
            raise argparse.ArgumentTypeError(f"{text} is too large; give at most {LARGEST}")
        return value

    return parse


def real_number(text: str) -> float:
    """Argument type: a finite number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def share(text: str) -> float:
    """Argument type: a share of at least 0, as a ratio (``0.1``) or as a percentage (``10%``).

    A bare number above 1 is refused: whoever writes 10 most likely means 10 %, not ten times the whole.
    """
    number = real_number(text.removesuffix("%"))
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    if text.endswith("%"):
        return number / 100
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text} means {100 * number:g} %; write {text}% or {number / 100:g}")
    return number


def listed(item: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    """Argument type: values with commas between."""

    def parse(text: str) -> tuple[int, ...]:
        values = tuple(item(part) for part in text.split(","))
        if len(set(values)) != len(values):
            raise argparse.ArgumentTypeError(f"{text!r} names a value twice")
        return values

    return parse


def names(text: str) -> tuple[str, ...]:
    """Argument type: names with commas between."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} holds an empty name")
    return found


def add_model(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """MODEL and how to get it."""
    kinds = "hub id, folder, .gguf file, or smollm2-135m"
    if default is None:
        parser.add_argument("model", metavar="MODEL", help=kinds)
    else:
        parser.add_argument("model", metavar="MODEL", nargs="?", default=default, help=f"{kinds} (default {default})")
    parser.add_argument(
        "--random-weights", metavar="SEED", type=whole_number(0), help="take only the model's shape, draw the weights"
    )


def check_model_output(folder: str, *sources: str | None) -> Path:
    """The output folder of a new model; `InputError` when it can't be written or is a model that the command reads."""
    from pathlib import Path

    from sentinel.errors import InputError
    from sentinel.files import check_output_folder
    from sentinel.models.folder import is_checkpoint

    output = Path(folder).expanduser().resolve()
    for source in sources:
        if source is not None and output.exists() and Path(source).expanduser().resolve() == output:
            raise InputError(f"{folder} is the model that is read, and would be lost; name another folder to write to")
    return check_output_folder(folder, is_checkpoint)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Where it runs."""
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--threads", metavar="N", type=whole_number(1), help="threads (default: physical cores)")


def warn_of_threads(threads: int | None) -> None:
    """More threads than cores are allowed, and warned of."""
    from sentinel.cores import physical_cores

    cores = physical_cores()
    if threads is not None and threads > cores:
        say(f"warning: {threads} threads on {cores} cores will be slower than {cores}")


def set_threads(threads: int | None) -> None:
    """Apply ``--threads``."""
    import torch

    from sentinel.cores import physical_cores

    warn_of_threads(threads)
    torch.set_num_threads(threads or physical_cores())


def load_model(options: argparse.Namespace) -> LoadedModel:
    """The model that the arguments name, with threads and device set."""
    from sentinel.models.sources import load

    if hasattr(options, "threads"):
        set_threads(options.threads)
    return load(options.model, random_weights=options.random_weights, device=getattr(options, "device", "cpu"))


def set_pruning_level(decoder: Decoder, heads: float, neurons: float) -> None:
    """Apply ``--heads`` and ``--neurons``: a level that the model stores."""
    from sentinel.models.elastic import require_levels

    if heads or neurons:
        require_levels(decoder).set_level(heads, neurons)
