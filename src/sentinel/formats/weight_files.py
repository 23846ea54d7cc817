"""Files of weights in a model folder: safetensors, and what PyTorch pickled before; one file, or shards with an index."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.families.weights import State
from sentinel.models.tokenizer import read_json
from sentinel.plain import is_object

INDEX = ".index.json"  # behind the name of the single file


def read_stored(folder: Path) -> State:
    """All tensors of ``model.safetensors``, else of ``pytorch_model.bin``, or of the shards that the index of either names.

    Raises `InputError` for a file that is missing or damaged.
    """
    for name, read in READERS.items():
        if (folder / name).exists():
            return read(folder / name)
        if (folder / f"{name}{INDEX}").exists():
            return _read_shards(folder / f"{name}{INDEX}", read)
    raise InputError(f"{folder} has no weights: none of {' and '.join(READERS)}, nor an index of shards")


def read_tensors(file: Path) -> State:
    """All tensors of one safetensors file; `InputError` when it is missing or damaged."""
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or truncated ({error}); fetch it again") from error


def read_pickled(file: Path) -> State:
    """All tensors that PyTorch pickled in a file, of which nothing is run; `InputError` for what is not just tensors."""
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
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


READERS: dict[str, Callable[[Path], State]] = {"model.safetensors": read_tensors, "pytorch_model.bin": read_pickled}


def _read_shards(index: Path, read: Callable[[Path], State]) -> State:
    folder, shards = index.parent, _shards(index)
    state: State = {}
    for file in sorted(set(shards.values())):
        tensors = read(folder / file)
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
def writing_safetensors() -> Iterator[None]:
    """A full disk is an `OSError`, as for any other file, and not one of that package's own."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
