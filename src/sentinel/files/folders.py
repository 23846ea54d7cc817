"""Outputs that are a folder: the manifest in it tells our files from others, which are never replaced or removed.

``sentinel-files.json`` holds, by name, size and SHA-256 of each file as sentinel wrote it (null: a file that a run goes on
changing). A file that is not listed, or no longer as listed, is somebody else's.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentinel.errors import InputError
from sentinel.files.places import TEMPORARY, default_mode, make_folder, mode_of, require_makeable

MANIFEST = "sentinel-files.json"
SCHEMA = "sentinel-files/1"

Manifest = dict[str, Any]  # by name {"size": bytes, "sha256": digest}, or None


def check_output_folder(path: str | Path, force: bool = False, names: Sequence[str] = ()) -> Path:
    """Refuse early a folder that can't be written, and one that holds anything.

    With ``force``, a folder is refused only if files that sentinel did not write there match ``names`` (patterns of the
    names that are to be written).
    """
    path = _require_folder(path)
    require_makeable(Path(os.path.realpath(path)), path)
    if not path.is_dir():
        return path
    present = _contents(path)
    if present and not force:
        raise InputError(
            f"{path} exists and is not empty; name another folder, or add --force (force=True), which replaces what "
            "sentinel wrote there and leaves all other files"
        )
    wanted = [name for name in present if any(fnmatch.fnmatch(name, pattern) for pattern in names)]
    _refuse_foreign(path, wanted, _read(path))
    return path


@contextmanager
def write_folder(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill, which becomes ``path`` when the block ends well.

    A folder that holds anything is refused. With ``force``, what sentinel wrote there and nobody has changed is replaced or
    removed, everything else stays, and a file of somebody else in the way of a new one is refused by name.
    """
    path = check_output_folder(path, force)
    with _staged(path) as (staged, place):
        yield staged
        _write_manifest(staged, _entries(staged))
        if not place.exists():
            try:
                staged.rename(place)
                return
            except OSError:
                if not place.is_dir():
                    raise
        with _locked(place):
            check_output_folder(path, force)  # nothing has come there meanwhile
            known = _read(place)
            mine = [name for name in known if _is_ours(place, name, known)]
            _refuse_foreign(path, [name for name in _files(staged) if os.path.lexists(place / name)], known)
            _swap(staged, place, mine)


@contextmanager
def write_into(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends well, each file of it is renamed into ``path``, over one of the
    same name. Everything else there stays.

    This is how Hugging Face saves: models, tokenizers and other files share a folder. The manifest gets the new files.
    """
    path = _require_folder(path)
    with _staged(path) as (staged, place):
        yield staged
        entries = _entries(staged)
        make_folder(place)
        with _locked(place):
            for name in sorted(entries, key=lambda name: name.endswith(".json")):  # what tells of the others comes last
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (staged / name).replace(place / name)
            _write_manifest(place, {**_read(place), **entries})


def claim_folder(folder: Path, names: Sequence[str]) -> None:
    """Make ``folder`` the place of a run that goes on changing the files ``names``, and list them in the manifest.

    Raises `InputError` for a file of that name that is somebody else's.
    """
    make_folder(_require_folder(folder))
    with _locked(folder):
        known = _read(folder)
        _refuse_foreign(folder, [name for name in names if os.path.lexists(folder / name)], known)
        _write_manifest(folder, {**known, **dict.fromkeys(names)})


def remove_written(folder: Path, names: Sequence[str] | None = None) -> None:
    """Remove the files of ``folder`` that sentinel wrote and nobody has changed (of ``names``: those), and the folder if
    nothing is left."""
    known = _read(folder)
    if not known:
        return
    for name in list(known) if names is None else names:
        if _is_ours(folder, name, known):
            (folder / name).unlink()
            _remove_empty((folder / name).parent, folder)
    if not set(_contents(folder)) - {MANIFEST}:
        (folder / MANIFEST).unlink(missing_ok=True)
        _remove_empty(folder, folder.parent)


def written_size(folder: Path) -> int:
    """Bytes of the files that sentinel wrote to ``folder``."""
    return sum(entry["size"] for entry in _read(folder).values() if entry is not None)


def _require_folder(path: str | Path) -> Path:
    mode = mode_of(path)
    if mode and not stat.S_ISDIR(mode):
        raise InputError(f"{path} is a file; name a folder to write to")
    return Path(path)


def _contents(folder: Path) -> list[str]:
    """What lies in ``folder``, but for what an interrupted run left unfinished."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY))


def _files(staged: Path) -> list[str]:
    """Names of all files in the temporary folder ``staged`` and below, but for the manifest."""
    found = (file.relative_to(staged).as_posix() for file in staged.rglob("*") if file.is_file())
    return sorted(name for name in found if name != MANIFEST)


def _entries(staged: Path) -> Manifest:
    """The manifest of what was written to ``staged``, which gets the usual permissions (safetensors writes for the owner
    alone)."""
    for file in (staged, *staged.rglob("*")):
        file.chmod(default_mode(folder=file.is_dir()))
    return {name: _entry(staged / name) for name in _files(staged)}


def _entry(file: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}


def _read(folder: Path) -> Manifest:
    """The files that the manifest of ``folder`` lists; none where there is no manifest or it is damaged."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            return {}
        return {str(name): entry for name, entry in data["files"].items() if ".." not in Path(name).parts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_manifest(folder: Path, files: Manifest) -> None:
    text = json.dumps({"schema": SCHEMA, "files": dict(sorted(files.items()))}, indent=1) + "\n"
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=".part", dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).chmod(default_mode())
    Path(name).replace(folder / MANIFEST)


def _is_ours(folder: Path, name: str, known: Manifest) -> bool:
    """True for a file that stands as the manifest has it."""
    file = folder / name
    if name not in known or file.is_symlink() or not file.is_file():
        return False
    entry = known[name]
    return entry is None or (file.stat().st_size == entry["size"] and _entry(file) == entry)


def _refuse_foreign(folder: Path, names: Sequence[str], known: Manifest) -> None:
    for name in names:
        if not _is_ours(folder, name, known):
            raise InputError(
                f"{folder / name} is in the way and is not as sentinel wrote it; move it, or name another folder"
            )


@contextmanager
def _staged(path: Path) -> Iterator[tuple[Path, Path]]:
    """A temporary folder on the file system of ``path``, and where ``path`` really is, its symlinks followed."""
    place = Path(os.path.realpath(path))
    beside = place if place.is_dir() else place.parent
    make_folder(beside)
    staged = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=".part", dir=beside))
    try:
        yield staged, place
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one writer at a time rename files in ``folder``."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _swap(staged: Path, place: Path, mine: Sequence[str]) -> None:
    """Put the files of ``staged`` into ``place`` instead of ``mine``; all of them, or none when something fails.

    JSON files leave first and come last, so that no description stands beside weights that are not its own.
    """
    aside = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=".old", dir=place))
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        moved.append((source, target))

    done = False
    try:
        old = [MANIFEST, *mine] if (place / MANIFEST).exists() else list(mine)
        for name in sorted(old, key=lambda name: not name.endswith(".json")):
            move(place / name, aside / name)
        for name in sorted((*_files(staged), MANIFEST), key=lambda name: name.endswith(".json")):
            move(staged / name, place / name)
        done = True
    finally:
        if not done:
            for source, target in reversed(moved):
                target.rename(source)
        shutil.rmtree(aside, ignore_errors=True)
    for name in mine:
        _remove_empty((place / name).parent, place)


def _remove_empty(folder: Path, above: Path) -> None:
    """Remove ``folder`` and its parents below ``above`` as long as they are empty."""
    while folder != above and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
