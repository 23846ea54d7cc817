"""Arguments that several commands share, with one meaning and one check each."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sentinel.errors import Interrupted
from sentinel.progress import say

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel.formats.sources import LoadedModel
    from sentinel.models.decoder import Decoder


DTYPES = ("auto", "fp32", "bf16", "fp16")  # as `models.dtypes`, which needs torch
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


def plain_text(text: str) -> str:
    """Argument type: text. Bytes that the locale could not read are UTF-8, or refused."""
    try:
        return os.fsencode(text).decode("utf-8") if any("\ud800" <= c <= "\udfff" for c in text) else text
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError("it is not valid UTF-8 text; save or type it as UTF-8") from None


@contextmanager
def telling_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """An interruption inside says what ``kept`` tells: what is kept, and which command goes on."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(kept()) from None


def command_again(options: argparse.Namespace, *more: str) -> str:
    """The command as it was given, with ``more`` instead of its --resume and --force if there is any."""
    words = list(options.arguments)
    if more:
        kept: list[str] = []
        skip = False
        for word in words:
            name = word.partition("=")[0]
            resume = len(name) > 4 and "--resume".startswith(name)
            if not skip and not resume and not (len(name) > 3 and "--force".startswith(name)):
                kept.append(word)
            skip = resume and len(more) > 1 and "=" not in word
        words = kept
    return shlex.join(["sentinel", *words, *more])


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


def add_output(parser: argparse.ArgumentParser) -> None:
    """The folder of a new model, and leave to replace an old one."""
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write")
    add_force(parser)


def add_force(parser: Any) -> None:
    """Leave to replace what stands at the output's place."""
    parser.add_argument(
        "--force", action="store_true", help="replace what sentinel wrote to the output before; other files there stay"
    )


def check_model_output(folder: str, force: bool, *sources: str | None) -> Path:
    """The output folder of a new model; `InputError` when it can't be written, when it holds anything (with ``force``: what
    sentinel did not write and a model would be read with), or when it is a model that the command reads."""
    from pathlib import Path

    from sentinel.errors import InputError
    from sentinel.files import check_output_folder
    from sentinel.formats.folder import MODEL_FILES

    output = Path(folder).expanduser().resolve()
    for source in sources:
        if source is not None and output.exists() and Path(source).expanduser().resolve() == output:
            raise InputError(f"{folder} is the model that is read, and would be lost; name another folder to write to")
    return check_output_folder(output, force, MODEL_FILES)


def add_dtype(parser: argparse.ArgumentParser, default: str) -> None:
    """In which type weights are held; None where nothing was said, which means ``default``."""
    parser.add_argument(
        "--dtype", choices=DTYPES, help=f"type of the loaded weights; auto: as they are stored (default: {default})"
    )


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


def load_model(options: argparse.Namespace, default_dtype: str = "fp32") -> LoadedModel:
    """The model that the arguments name, with threads and device set."""
    from sentinel.formats.sources import load

    if hasattr(options, "threads"):
        set_threads(options.threads)
    return load(
        options.model,
        random_weights=options.random_weights,
        device=getattr(options, "device", "cpu"),
        dtype=getattr(options, "dtype", None) or default_dtype,
    )


def set_pruning_level(decoder: Decoder, heads: float, neurons: float) -> None:
    """Apply ``--heads`` and ``--neurons``: a level that the model stores."""

    if heads or neurons:
        decoder.set_width(heads, neurons)
