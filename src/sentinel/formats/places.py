"""Where the files of a model are: a folder, a GGUF file, the hub, or a package. Known without importing torch."""

from __future__ import annotations

from pathlib import Path

from sentinel.errors import InputError
from sentinel.formats.folder import weight_files
from sentinel.formats.packages import SMOLLM2_ALIAS, smollm2_folder
from sentinel.formats.shapes import KNOWN_SHAPES

HUB_FILES = ("*.json", "*.safetensors", "merges.txt", "vocab.txt", "*.model", "*.jinja")
OLDER = ("pytorch_model*.bin",)  # fetched where there is no other weight


def locate(model: str) -> Path:
    """The folder or ``.gguf`` file that holds ``model``; downloads from the hub or the package index when needed."""
    if not model.strip():
        raise InputError("the model's name is empty; give a hub id, a folder, a .gguf file or smollm2-135m")
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model == SMOLLM2_ALIAS:
        return smollm2_folder()
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path
        raise InputError(f"{model} is a file, but not a .gguf file; give a model folder or a .gguf file")
    if path.suffix.lower() == ".gguf" or model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise InputError(f"{model} does not exist")
    return _hub_folder(model)


def _hub_folder(model: str) -> Path:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    known = ", ".join(KNOWN_SHAPES)
    try:
        try:
            folder = Path(snapshot_download(model, allow_patterns=list(HUB_FILES), local_files_only=True))
        except LocalEntryNotFoundError:
            folder = Path(snapshot_download(model, allow_patterns=list(HUB_FILES)))
        if weight_files(folder):
            return folder
        try:
            return Path(snapshot_download(model, allow_patterns=[*HUB_FILES, *OLDER]))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError):
            return folder  # whose config alone may be wanted
    except HFValidationError as error:
        raise InputError(f"{model!r} is not a folder here and not a valid hub id") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{model!r} is not a folder here and the hub has no model of that name") from error
    except PermissionError as error:
        raise InputError(
            f"{model!r} can't be kept in {error.filename} ({error.strerror}); set HF_HOME to another folder"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{model!r} is not a folder here, not in the Hugging Face cache, and the hub can't be reached; "
            f"without a connection there are smollm2-135m and, with --random-weights 0, the shapes {known}"
        ) from error


def label(model: str) -> str:
    """How the model is called in tables: a hub id as it is, a path by its last part."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model
