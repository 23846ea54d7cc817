"""Folders to write to: the cache, missing parents, and what can be said of a place before anything is written there."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from sentinel.errors import InputError

TEMPORARY = ".sentinel-"  # how names of unfinished files and folders begin


def cache_folder() -> Path:
    """Where converted models and compiled kernels are kept: ``$SENTINEL_CACHE``, else the platform's cache folder.

    For a user whose home is unknown, a place where nothing can be made.
    """
    if named := os.environ.get("SENTINEL_CACHE"):
        return Path(named)
    try:
        return Path(platformdirs.user_cache_dir("sentinel-ai"))
    except RuntimeError:  # no home
        return Path(os.devnull) / "sentinel-ai"


def not_kept(what: str, error: InputError) -> str:
    """A note that ``what`` can't be written to the cache, and the mend."""
    reason = str(error).partition("; ")[0]
    return f"{what} can't be kept for the next start ({reason}); set SENTINEL_CACHE to a folder that can be written to"


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its missing parents; `InputError` when that can't be done."""
    require_makeable(folder, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} can't be made ({error.strerror}); choose another output path") from error


def mode_of(path: str | Path) -> int:
    """The mode (`stat`) of what ``path`` names, symlinks followed; 0 where there is nothing that could be seen.

    Raises `InputError` for what can't be a name: too long, with a null in it, a symlink that leads to itself.
    """
    try:
        return Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # why is told where something is to be written
        return 0
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r} can't be written ({why}); choose another output path") from error


def require_makeable(folder: Path, output: Path) -> None:
    """Raise `InputError`, which names ``output``, unless files can be made in ``folder`` or in its nearest parent."""
    place = folder.absolute()
    try:
        while not os.path.lexists(place):
            place = place.parent
        if not stat.S_ISDIR(mode_of(place)):
            raise InputError(f"{output}: {place} is a file; choose another output path")
        with tempfile.TemporaryFile(prefix=TEMPORARY, dir=place):
            pass
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{output}: nothing can be written in {place} ({why}); choose another output path") from error


def default_mode(*, folder: bool = False) -> int:
    """The permissions that a new file has here, whatever a library gave it."""
    mask = os.umask(0)
    os.umask(mask)
    return (0o777 if folder else 0o666) & ~mask
