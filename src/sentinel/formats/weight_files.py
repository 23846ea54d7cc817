"""Files of weights in a model folder: safetensors, and what PyTorch pickled before; one file, or shards with an index."""

from __future__ import annotations

import functools
import pickle
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.families.weights import State, Stored
from sentinel.models.rows import ALL, Unread
from sentinel.models.tokenizer import read_json
from sentinel.plain import is_object

INDEX = ".index.json"  # behind the name of the single file


def open_stored(folder: Path) -> Stored:
    """All tensors of ``model.safetensors``, else of ``pytorch_model.bin``, or of the shards that the index of either names;
    each is read when it is asked for.

    Raises `InputError` for a file that is missing or damaged.
    """
    for name, opened in READERS.items():
        if (folder / name).exists():
            return opened(folder / name)
        if (folder / f"{name}{INDEX}").exists():
            return _open_shards(folder / f"{name}{INDEX}", opened)
    raise InputError(f"{folder} has no weights: none of {' and '.join(READERS)}, nor an index of shards")


@contextmanager
def _safetensors(file: Path) -> Generator[Any, None, None]:
    """The file, opened; `InputError` when it is missing or damaged."""
    try:
        found: Any = safe_open(file, "pt")
        with found as opened:
            yield opened
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or truncated ({error}); fetch it again") from error


def open_safetensors(file: Path) -> Stored:
    """All tensors of one safetensors file; `InputError` when it is missing or damaged.

    The file is mapped anew for each reading: what is mapped counts as memory as long as it is.
    """
    found: Stored = {}
    with _safetensors(file) as opened:
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            part = opened.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype()) or opened.get_tensor(name).dtype
            found[name] = Unread(tuple(part.get_shape()), dtype, functools.partial(_read_safetensors, file, name))
    return found


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _read_safetensors(file: Path, name: str, rows: slice) -> Tensor:
    with _safetensors(file) as opened:
        found: Tensor = opened.get_tensor(name)[rows] if rows == ALL else opened.get_slice(name)[rows]
        return found.clone()  # of its own: the file is let go of


def open_pickled(file: Path) -> Stored:
    """All tensors that PyTorch pickled in a file, of which nothing is run; `InputError` for what is not just tensors.

    They are mapped anew for each reading, but for files from before PyTorch 1.6, which are held.
    """
    mapped = file.exists() and zipfile.is_zipfile(file)
    found = _unpickled(file, mapped)
    if not mapped:
        return dict(found)

    def read(name: str, rows: slice) -> Tensor:
        return _unpickled(file, mapped)[name][rows].clone()

    return {n: Unread(tuple(t.shape), t.dtype, functools.partial(read, n)) for n, t in found.items()}


def _unpickled(file: Path, mapped: bool) -> State:
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} holds more than weights, which could run anything, or is damaged; re-save it as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} is damaged or truncated ({reason}); fetch it again") from error
    if not is_object(found) or not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise InputError(f"{file} holds no table of tensors by name; give the weights of a model")
    return dict(found)


READERS: dict[str, Callable[[Path], Stored]] = {
    "model.safetensors": open_safetensors,
    "pytorch_model.bin": open_pickled,
}


def _open_shards(index: Path, opened: Callable[[Path], Stored]) -> Stored:
    folder, shards = index.parent, _shards(index)
    state: Stored = {}
    for file in sorted(set(shards.values())):
        tensors = opened(folder / file)
        if missing := sorted(n for n, place in shards.items() if place == file and n not in tensors):
            raise InputError(
                f"{folder / file} lacks tensor {missing[0]!r}, which {index.name} places there; fetch it again"
            )
        if twice := sorted(set(tensors) & set(state)):
            raise InputError(f"{folder}: tensor {twice[0]!r} is in two files; fetch the model again")
        state.update(tensors)
    return state


def _shards(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index of shards."""
    found: dict[str, Any] | None = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise InputError(f"{index} has no 'weight_map' from tensors to files; fetch it again")
    return found


def write_tensors(tensors: State, file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file; `OSError` when the disk is full, as for any other file."""
    with writing_safetensors():
        save_file(tensors, file, metadata=metadata)


@contextmanager
def writing_safetensors() -> Generator[None, None, None]:
    """A full disk is an `OSError`, as for any other file, and not one of that package's own."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
