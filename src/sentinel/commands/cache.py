"""``sentinel cache``: what is kept between starts, and how to be rid of it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kept:
    """Something in the cache: what it is, where, and whether it takes long to make again."""

    what: str
    place: Path
    costly: bool
    remove: Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="what is kept, its size and its last use")
    clear = actions.add_parser("clear", help="remove packed weights, which are made again at the next start")
    clear.add_argument(
        "--all",
        action="store_true",
        help="compiled kernels, calibration text, and fetched models, tokenizers and texts too (a download, a minute)",
    )


def run(options: argparse.Namespace) -> None:
    from sentinel.files import cache_folder
    from sentinel.infer.packed_cache import size_of

    found = list(kept())
    if options.action == "list":
        _print(found)
        return
    chosen = [one for one in found if options.all or not one.costly]
    freed = sum(size_of(one.place) for one in chosen)
    for one in chosen:
        one.remove()
    left = [one.place for one in chosen if one.place.exists()]
    print(f"{cache_folder()}: removed {len(chosen) - len(left)}, {freed / 1e6:,.1f} MB")
    for place in left:
        print(f"{place} is left: it can't be removed, or holds other files")


def kept() -> Iterator[Kept]:
    """All that sentinel has put into the cache."""
    from functools import partial

    from sentinel.files import cache_folder, remove_written
    from sentinel.formats.packages import CACHED, kept_texts
    from sentinel.infer import packed_cache
    from sentinel.infer.native.program import code_files

    for entry in packed_cache.entries():
        yield Kept(_described(entry), entry, False, partial(packed_cache.remove, entry))
    for scrap in packed_cache.scraps():
        yield Kept("left by a process that was ended", scrap, False, partial(packed_cache.remove_scrap, scrap))
    digests = packed_cache.folder() / packed_cache.DIGESTS
    if digests.exists():
        yield Kept("digests of model files", digests, False, partial(_remove_file, digests))
    for file in code_files():
        yield Kept("compiled kernels", file, True, partial(_remove_file, file))
    for name, what in CACHED.items():
        folder = cache_folder() / name
        if (folder / "tokenizer_config.json").exists():
            yield Kept(what, folder, True, partial(packed_cache.remove, folder))
    for what, place in kept_texts():
        yield Kept(what, place, True, partial(remove_written if place.is_dir() else _remove_file, place))


def _described(entry: Path) -> str:
    from sentinel.errors import InputError
    from sentinel.formats.folder import read_config, read_record

    try:
        config, steps = read_config(entry), read_record(entry).steps
    except InputError:
        return "packed weights, damaged"
    listed = config.get("widths") or config.get("levels") or ()
    widths = [f", {width.get('heads', 0):g}/{width.get('neurons', 0):g}" for width in listed]
    source = steps[-1].source if steps else "a model"
    return f"{source}, {config.get('precision', '')} for level 3{''.join(widths)}"


def _print(found: list[Kept]) -> None:
    from datetime import datetime

    from sentinel.files import cache_folder
    from sentinel.infer.packed_cache import limit_bytes, size_of
    from sentinel.report.cells import number
    from sentinel.report.terminal import print_table, stdout_console

    rows = []
    for one in found:
        used = datetime.fromtimestamp(one.place.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        rows.append([one.what, number(size_of(one.place) / 1e6), used, one.place.name])
    total = sum(size_of(one.place) for one in found) / 1e6
    title = f"{cache_folder()}: {number(total)} MB; packed weights may take {limit_bytes() / 1e9:g} GB"
    print_table(stdout_console(), ["what", "MB", "last use", "name"], rows, title)


def _remove_file(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()
