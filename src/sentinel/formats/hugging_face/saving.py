"""`SentinelForCausalLM.save_pretrained`: additive as Hugging Face's, and whole file by file."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import HfApi
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import PushToHubMixin

from sentinel.errors import InputError
from sentinel.files import write_into
from sentinel.formats.checkpoint import WIDTH_FILE, listed_widths, write_widths
from sentinel.formats.folder import read_config

if TYPE_CHECKING:
    from sentinel.formats.hugging_face.base import SentinelPreTrainedModel

OF_SAVING = frozenset(inspect.signature(cast(Any, PreTrainedModel).save_pretrained).parameters) - {"self", "kwargs"}
OF_PUSHING = frozenset(inspect.signature(PushToHubMixin.push_to_hub).parameters) - {"self", "deprecated_kwargs"}


def save(
    model: SentinelPreTrainedModel,
    folder: Path,
    state_dict: dict[str, Tensor] | None,
    options: dict[str, Any],
    write: Callable[..., None],
) -> None:
    """Save ``model`` to ``folder``, and to the hub if asked; ``write`` is Hugging Face's own ``save_pretrained``."""
    options, pushing = _split(options)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder to write to")
    with _pushed(model, folder, pushing):
        with write_into(folder) as temporary:
            if not getattr(model, "_hf_peft_config_loaded", False):
                state_dict = _with_widths(model, temporary, state_dict)
            write(temporary, state_dict=state_dict, **options)
            written = {file.name for file in temporary.iterdir()}
            _refuse_foreign_widths(folder, written)
        for name in _stale(folder, written, options.get("variant")):
            (folder / name).unlink()


@contextmanager
def _pushed(
    model: SentinelPreTrainedModel, folder: Path, options: dict[str, Any] | None
) -> Generator[None, None, None]:
    """Make the repository, called as the folder by default; upload what the block writes. Nothing without ``options``."""
    if options is None:
        yield
        return
    name = options.pop("repo_id", None) or folder.absolute().name
    token = options["token"]
    repository = HfApi().create_repo(name, exist_ok=True, private=options.pop("private", None), token=token).repo_id
    theirs = cast(Any, model)  # these methods of transformers have no types
    before: dict[str, Any] = theirs._get_files_timestamps(folder) if folder.is_dir() else {}
    yield
    theirs._upload_modified_files(folder, repository, before, **options)


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The options of saving, and those of pushing to the hub (None: do not push). What has no effect is refused."""
    options = {"safe_serialization": True, "distributed_checkpoint": False, "push_to_hub": False, **options}
    unknown = sorted(set(options) - OF_SAVING - OF_PUSHING - {"safe_serialization", "distributed_checkpoint"})
    if unknown:
        raise TypeError(f"save_pretrained() got an unexpected keyword argument {unknown[0]!r}")
    if not options.pop("safe_serialization"):
        raise InputError("safe_serialization=False is not supported; models are saved as safetensors")
    if options.pop("distributed_checkpoint"):
        raise InputError("distributed_checkpoint is not supported; save the whole model from one process")
    pushes, token = options.pop("push_to_hub"), options.pop("token", None)
    pushing = {name: options.pop(name) for name in list(options) if name in OF_PUSHING - OF_SAVING}
    if not pushes:
        if pushing:
            raise InputError(f"{min(pushing)} is of use with push_to_hub=True only; leave it out")
        return options, None
    return options, {**pushing, "token": token}


def _with_widths(
    model: SentinelPreTrainedModel, folder: Path, state_dict: dict[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """Write the stored widths of an elastic model to ``folder``; returns the state of the whole."""
    decoder = model.decoder
    if hasattr(model.config, "levels"):  # the older name
        delattr(model.config, "levels")
    if not decoder.widths:
        model.config.widths = None
        return state_dict
    if state_dict is not None and decoder.current is not None:
        raise InputError("state_dict is that of a stored width; leave it out, or set the whole width first")
    model.config.widths = write_widths(decoder, folder)
    return state_dict or {f"decoder.{name}": tensor for name, tensor in decoder.whole_state().items()}


def _refuse_foreign_widths(folder: Path, written: set[str]) -> None:
    """Raise `InputError` for a file in the way of a width's that the model in ``folder`` does not name as its own."""
    config = read_config(folder) if (folder / "config.json").exists() else {}
    known = {entry["file"] for entry in listed_widths(config)}
    for name in sorted(written - known):
        if name.startswith(f"{WIDTH_FILE}-") and (folder / name).exists():
            raise InputError(f"{folder / name} is in the way and is no stored width of the model there; move it first")


def _stale(folder: Path, written: set[str], variant: str | None) -> list[str]:
    """Weights of an earlier save of this ``variant`` that were not written again, and would be read in place of the new."""
    infix = "" if variant is None else rf"\.{re.escape(variant)}"
    weights = re.compile(rf"model{infix}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{infix}\.json")
    if not any(weights.fullmatch(name) for name in written):  # adapters alone
        return []
    return sorted(f.name for f in folder.iterdir() if weights.fullmatch(f.name) and f.name not in written)
