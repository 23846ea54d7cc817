"""Outputs appear whole or not at all: written beside their place under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from sentinel.errors import InputError


def cache_folder() -> Path:
    """Where converted models and compiled kernels are kept: ``$SENTINEL_CACHE``, else the platform's cache folder."""
    return Path(os.environ.get("SENTINEL_CACHE") or platformdirs.user_cache_dir("sentinel-ai"))


def require_writable_parent(path: Path) -> None:
    """Raise `InputError` unless something can be created beside ``path``. Missing parent folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path}: {path.parent} is a file; choose another output path") from error
    except OSError as error:
        raise InputError(f"{path}: the folder can't be made ({error.strerror}); choose another output path") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: {path.parent} is not writable; choose another output path")


def check_output_file(path: str | Path) -> Path:
    """Refuse early a file that can't be written."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write to")
    require_writable_parent(path)
    return path


@contextmanager
def write_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` when the block ends well, and is removed otherwise."""
    path = check_output_file(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with write_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_output_folder(path: str | Path, is_ours: Callable[[Path], bool]) -> Path:
    """Refuse early a folder that can't be written or that holds something other than what is replaced there."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; name a folder to write to")
    require_writable_parent(path)
    if path.is_dir():
        if not os.access(path, os.W_OK):
            raise InputError(f"{path} is not writable; choose another output folder")
        if any(path.iterdir()) and not is_ours(path):
            raise InputError(f"{path} holds other files; choose an empty or new folder")
    return path


@contextmanager
def write_folder(path: str | Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a temporary folder to fill; it takes the place of ``path`` when the block ends well.

    A folder that stands there already is replaced only if it is empty or ``is_ours(path)`` says so.
    """
    path = check_output_folder(path, is_ours)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in filter(Path.is_file, temporary.rglob("*")):  # safetensors writes for the owner alone
            file.chmod(0o666 & ~_umask())
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.replace(path)
        raise InputError(f"{path} can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
