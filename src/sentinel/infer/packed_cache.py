"""Packed weights of level 3, kept between starts, so that a model is quantised once.

An entry is a quantised checkpoint, in a folder that is named by a digest of all that decides what is in it: the contents
of the model's files, the precision, the width, and the code that reads, quantises and packs. What was used least lately
goes first when all entries take more than ``$SENTINEL_CACHE_GB``, 4 by default; at 0 nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sentinel
from sentinel.errors import InputError
from sentinel.files import cache_folder, make_folder, not_kept, write_text
from sentinel.infer.quantised import WEIGHTS_FILE, QuantisedModel
from sentinel.models.tokenizer_files import COPIED, SETTINGS, TEMPLATE, TEMPLATES, TOKENIZER
from sentinel.progress import say

LIMIT = "SENTINEL_CACHE_GB"
DEFAULT_GB = 4.0
NAME = re.compile(r"[0-9a-f]{24}")
SCRATCH = re.compile(r"\.[0-9a-f]{24}\..*\.part")
DIGESTS = "digests.json"
# Files of a model folder that decide about weights or tokenizer.
DECISIVE = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja")
# Code that decides what is packed.
CODE = (
    "models/**/*.py", "formats/**/*.py", "infer/pack.py", "infer/quantised.py", "infer/native/**/*.py",
)  # fmt: skip
OURS = (
    "*.safetensors", "config.json", "sentinel-files.json", TOKENIZER, SETTINGS, TEMPLATE, f"{TEMPLATES}/*.jinja", *COPIED
)  # fmt: skip
_FRESH_SECONDS = 2.0  # a file so young may be changed again without a change of its time
_STALE_SECONDS = 86_400.0  # scratch folders so old are of processes that were killed


def folder() -> Path:
    """Where the entries are."""
    return cache_folder() / "packed"


def limit_bytes() -> float:
    """How much all entries may take; `InputError` for a setting that is no number of GB."""
    text = os.environ.get(LIMIT, str(DEFAULT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise InputError(f"{LIMIT} is {text!r}; set it to a number of GB, 0 keeps nothing")
    return limit * 1e9


def entry_of(model: Path, precision: str, width: tuple[float, float]) -> Path:
    """Where the packed weights of the folder or file ``model`` are kept, if they are."""
    files = [model] if model.is_file() else sorted(p for p in model.iterdir() if p.suffix in DECISIVE and p.is_file())
    digest = hashlib.sha256(_code_digest())
    digest.update(repr((precision, *(round(share, 4) for share in width))).encode())
    for file, content in zip(files, _contents(files), strict=True):
        digest.update(f"{'' if model.is_file() else file.name}:{content}\n".encode())
    return folder() / digest.hexdigest()[:24]


def recall(entry: Path) -> QuantisedModel | None:
    """The model of an entry, which counts as used now; None when there is none, or it is damaged."""
    if not (entry / WEIGHTS_FILE).exists():
        return None
    try:
        found = QuantisedModel.load(entry)
    except InputError as error:
        say(f"what was kept of the model is damaged and is made again: {error}")
        remove(entry)
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read
        os.utime(entry)
    return found


def keep(entry: Path, n_byte: int, save: Callable[[Path], object]) -> None:
    """Let ``save`` write an entry of about ``n_byte`` bytes, whole or not at all, and drop the oldest beyond the limit.

    A cache that can't be written to is said, and no error.
    """
    if n_byte > limit_bytes():
        return
    try:
        make_folder(entry.parent)
        scratch = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", suffix=".part", dir=entry.parent))
        try:
            save(scratch / entry.name)
            with contextlib.suppress(OSError):  # another process was faster, with the same
                (scratch / entry.name).replace(entry)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        shrink(entry)
    except OSError as error:
        say(not_kept("the packed weights", InputError(f"{entry.parent}: {error.strerror or error}")))
    except InputError as error:
        say(not_kept("the packed weights", error))


def entries() -> list[Path]:
    """All entries, that last used first."""
    with contextlib.suppress(OSError):
        found = [path for path in folder().iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=_last_use, reverse=True)
    return []


def shrink(newest: Path) -> None:
    """Remove what was used least lately, but never ``newest``, until all entries keep the limit."""
    left = limit_bytes() - size_of(newest)
    for entry in entries():
        if entry != newest:
            left -= size_of(entry)
            if left < 0:
                remove(entry)
    for path in scraps():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                remove_scrap(path)


def scraps() -> Iterator[Path]:
    """What processes that write an entry are at, or have left behind."""
    with contextlib.suppress(OSError):
        yield from (path for path in folder().iterdir() if SCRATCH.fullmatch(path.name))


def remove(place: Path) -> None:
    """Remove the files that we write into a folder of the cache, and the folder if it holds nothing else."""
    for pattern in OURS:
        for file in place.glob(pattern):
            with contextlib.suppress(OSError):
                file.unlink()
    for path in (place / TEMPLATES, place):
        with contextlib.suppress(OSError):
            path.rmdir()


def remove_scrap(path: Path) -> None:
    """Remove the scratch folder of a process, with the entry that it did not finish."""
    for inner in path.iterdir():
        remove(inner)
    remove(path)


def size_of(place: Path) -> int:
    """Bytes of the files in a folder, or of a file; 0 where there is none."""
    with contextlib.suppress(OSError):
        files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        return sum(file.stat().st_size for file in files)
    return 0


def _last_use(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _code_digest() -> bytes:
    digest = hashlib.sha256()
    root = Path(sentinel.__file__).parent
    for file in sorted(path for pattern in CODE for path in root.glob(pattern)):
        digest.update(file.read_bytes())
    return digest.digest()


def _contents(files: list[Path]) -> list[str]:
    """Digests of the files' contents; those of files that have not changed since are remembered."""
    memory = folder() / DIGESTS
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    found, new = [], {}
    for file in files:
        state = file.stat()
        mark = [state.st_size, state.st_mtime_ns, state.st_ino]
        entry = known.get(str(file.resolve()))
        if not (isinstance(entry, list) and entry[:-1] == mark and isinstance(entry[-1], str)):
            entry = [*mark, _content(file)]
            if time.time() - state.st_mtime > _FRESH_SECONDS:
                new[str(file.resolve())] = entry
        found.append(entry[-1])
    if new:
        kept = {path: entry for path, entry in known.items() if Path(path).exists()}
        with contextlib.suppress(InputError, OSError):  # remembered by nobody, they are made again
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_text(memory, json.dumps({**kept, **new}))
    return found


def _content(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
