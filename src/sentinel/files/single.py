"""Outputs that are one file: regular files are renamed over; devices, pipes and standard output are written to."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO

from sentinel.errors import InputError
from sentinel.files.places import TEMPORARY, default_mode, mode_of, require_makeable

STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
DESCRIPTORS = ("/dev/stderr", "/dev/fd/", "/proc/self/fd/")


def is_stdout(path: str | Path) -> bool:
    """True for ``-`` and everything else that names standard output, be it the file that it was sent to."""
    if str(path) in STDOUT:
        return True
    try:
        return stat.S_ISREG(mode_of(path)) and os.path.samestat(Path(path).stat(), os.fstat(1))
    except OSError:  # standard output is closed
        return False


def is_stream(path: str | Path) -> bool:
    """True for what is written to and never renamed over: standard output, a device, a pipe, a descriptor's name."""
    if is_stdout(path) or str(path).startswith(DESCRIPTORS):
        return True
    mode = mode_of(path)
    return bool(mode) and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


_reserved: list[TextIO] = []  # standard output, while it is kept for a file that is written to it


@contextmanager
def stdout_reserved(outputs: Sequence[str | None]) -> Iterator[None]:
    """If one of ``outputs`` is standard output, everything else that is printed goes to stderr."""
    named = [path for path in outputs if path is not None and is_stdout(path)]
    if len(named) > 1:
        raise InputError(f"{named[0]} and {named[1]} are both standard output; send one of them to a file")
    if not named:
        yield
        return
    try:
        os.fstat(1)
    except OSError as error:
        raise InputError(f"{named[0]}: standard output is closed; name a file") from error
    _reserved.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _reserved.pop()


def check_output_file(path: str | Path, *, regular: bool = False) -> Path:
    """Refuse early a file that can't be written; with ``regular``, also what can't be read again. No folder is made."""
    path = Path(path)
    if regular and is_stream(path):
        raise InputError(f"{path} is not a regular file, so that nothing could go on from it; name a file")
    if is_stdout(path):
        return path
    mode = mode_of(path)
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; name a file to write to")
    if mode and not os.access(path, os.W_OK):
        raise InputError(f"{path} is not writable; name another file")
    if not is_stream(path):
        folder = Path(os.path.realpath(path)).parent
        if not os.path.lexists(folder):
            raise InputError(f"{path}: the folder {folder} does not exist; make it first, or name another file")
        require_makeable(folder, path)
    return path


@contextmanager
def write_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` when the block ends well, and is removed otherwise.

    A symlink stays, the file that it points to is replaced. What is no regular file is written to when the block ends.
    """
    path = check_output_file(path)
    stream = is_stream(path)
    place = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=".part", dir=None if stream else place.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if stream:
            _send(temporary, path)
        else:
            temporary.chmod(default_mode())
            temporary.replace(place)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _send(temporary: Path, path: Path) -> None:
    if is_stdout(path):
        stdout = _reserved[-1] if _reserved else sys.stdout
        stdout.write(temporary.read_text(encoding="utf-8"))
        stdout.flush()
    else:
        with path.open("wb") as file:
            file.write(temporary.read_bytes())


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with write_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # of a file name that is no UTF-8
