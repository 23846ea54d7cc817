"""Model folders: weights and a JSON file that says what is in them; written whole or not at all.

A sentinel checkpoint is ``config.json`` (``model_type: sentinel``, with the `ModelSpec`), ``model.safetensors`` and the
tokenizer's files. Folders of the supported Hugging Face families are read as they are, and so are those that `export`
writes for transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.files import write_folder
from sentinel.formats import unequal_folder
from sentinel.formats.folder import EXPORTED_TYPE, MODEL_TYPE, read_config
from sentinel.formats.stored import StoredWeights, WidthFile
from sentinel.formats.weight_files import open_safetensors, open_stored, write_tensors
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import stored_dtype
from sentinel.models.families import family_of, spec_of
from sentinel.models.families.others import text_part, text_tensors
from sentinel.models.families.weights import Stored, read_weights, settle_head
from sentinel.models.record import Record
from sentinel.models.rows import Rows, changed, finite
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer
from sentinel.models.width import Width
from sentinel.progress import say

ARCHITECTURE = "SentinelForCausalLM"
WIDTH_FILE = "width"  # and a number


def save_checkpoint(
    decoder: Decoder,
    folder: str | Path,
    tokenizer: TextTokenizer | None = None,
    record: Record | None = None,
    *,
    force: bool = False,
) -> None:
    """Write ``decoder`` to ``folder``, with the ``record`` of how it was made, by default the one that it carries.

    Raises `InputError` when ``folder`` is a file, can't be written, or holds anything. With ``force``, what sentinel wrote
    there is replaced and other files stay, see `write_folder`.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.whole_state().items()}
    config = checkpoint_config(decoder.spec, decoder.dtype, tokenizer, decoder.record if record is None else record)
    with write_folder(folder, force) as temporary:
        write_tensors(state, temporary / "model.safetensors", {"format": "pt"})
        if decoder.widths:
            config["widths"] = write_widths(decoder, temporary)
        if tokenizer is not None:
            tokenizer.copy_files(temporary)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def checkpoint_config(
    spec: ModelSpec, dtype: torch.dtype, tokenizer: TextTokenizer | None, record: Record
) -> dict[str, Any]:
    """What ``config.json`` says of a checkpoint."""
    eos = list(tokenizer.eos_ids) if tokenizer is not None else []
    config: dict[str, Any] = {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
    config["dtype"] = str(dtype).removeprefix("torch.")
    if eos:
        config["eos_token_id"] = eos[0] if len(eos) == 1 else eos
    config.update({"tie_word_embeddings": spec.tied_head, "spec": spec.to_dict()})
    config["record"] = record.to_dict()
    return config


def write_widths(decoder: Decoder, folder: Path) -> list[dict[str, Any]]:
    """One file of re-solved projections per stored width; returns what ``config.json`` says of them."""
    listed: list[dict[str, Any]] = []
    for stored in decoder.widths:
        name = f"{WIDTH_FILE}-{len(listed)}.safetensors"
        write_tensors({k: t.detach().cpu().contiguous() for k, t in stored.projections.items()}, folder / name)
        counts = {"groups": list(stored.width.groups), "neurons": list(stored.width.neurons)}
        listed.append({"heads": stored.heads, "neurons": stored.neurons, "file": name, "width": counts})
    return listed


def listed_widths(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``config.json`` says of stored widths; earlier versions called them levels, the whole among them."""
    return list(config.get("widths") or config.get("levels") or ())


def open_widths(folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> list[WidthFile]:
    """The stored widths of the model in ``folder`` with that ``config.json``, to be read in ``dtype`` or as they are."""
    found: list[WidthFile] = []
    try:
        for entry in listed_widths(config):
            counts = entry.get("width") or {"groups": entry["kept_groups"], "neurons": entry["kept_neurons"]}
            width = Width(tuple(counts["groups"]), tuple(counts["neurons"]))
            file = folder / entry["file"]
            projections = {name: finite(t, name, file) for name, t in open_safetensors(file).items()}
            found.append(WidthFile(float(entry["heads"]), float(entry["neurons"]), width, projections, dtype))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'config.json'}: its stored widths are damaged ({error})") from error
    return found


def read_spec(folder: Path) -> ModelSpec:
    """The specification of the model in ``folder``, without reading weights."""
    config = read_config(folder)
    model_type = config.get("model_type")
    if model_type == MODEL_TYPE and "precision" in config:
        raise InputError(
            f"{folder} is quantised ({config['precision']}), so that only level 3 of 'generate', 'evaluate' "
            "and 'profile' runs it; give the model that it was made from"
        )
    if model_type == MODEL_TYPE:
        if not isinstance(config.get("spec"), dict):
            raise InputError(f"{folder / 'config.json'} has no 'spec'; it is damaged or was made by something else")
        return ModelSpec.from_dict(config["spec"])
    if model_type == EXPORTED_TYPE:
        return unequal_folder.read_spec(config)
    if not isinstance(model_type, str):
        raise InputError(f"{folder / 'config.json'} has no model_type, so the model's family is not known")
    return spec_of(config)


def open_checkpoint(folder: str | Path, dtype: torch.dtype | None = None, *, most: bool = False) -> StoredWeights:
    """The weights of the model in ``folder``, a sentinel checkpoint, one of a supported Hugging Face family or an export.

    They are given in ``dtype``, None for each as it is stored, or with ``most`` for that which most of them are stored in.
    Weights of RMS norms that multiply by 1 + what a family stores are in fp32, as are those that a sentinel checkpoint
    holds so.
    """
    folder = Path(folder)
    spec, config = read_spec(folder), read_config(folder)
    state = open_stored(folder)
    ours, family = config["model_type"] in (MODEL_TYPE, EXPORTED_TYPE), family_of(spec.family)
    if config["model_type"] == EXPORTED_TYPE:
        state = unequal_folder.read_state(spec, state)
    elif ours:
        state = {name.removeprefix("decoder."): tensor for name, tensor in state.items()}
    else:
        if text_part(config) is not None:
            whole = f"{folder.name} is a multimodal model ({config['model_type']})"
            say(f"{whole}: its text part, a {spec.family}, is taken")
            state = text_tensors(state)
        state = family.rename(state)
    _require_floats(state, folder)
    dtype = stored_dtype(state.values()) if most else dtype
    if ours:
        state = state if dtype is None else _in(dtype, spec, state)
    else:
        spec, state = settle_head(spec, state, family.embedding)
        state = read_weights(family.rules(spec), spec, state, dtype)
    return StoredWeights(spec, state, folder, open_widths(folder, config, dtype))


def load_checkpoint(folder: str | Path, dtype: torch.dtype | None = torch.float32) -> Decoder:
    """The model of `open_checkpoint` on the CPU; ``dtype`` None is that which most of it is stored in."""
    return open_checkpoint(folder, dtype, most=dtype is None).decoder()


def _require_floats(state: Stored, source: object) -> None:
    for name, tensor in state.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise InputError(f"{source}: tensor {name!r} is of type {tensor.dtype}, not of floating-point weights")


def _in(dtype: torch.dtype, spec: ModelSpec, state: Stored) -> Stored:
    """The decoder's state in ``dtype``; weights of RMS norms that are stored in fp32 stay so."""

    def stays(name: str, tensor: Rows) -> bool:
        return spec.norm.kind == "rmsnorm" and name.endswith("norm.weight") and tensor.dtype == torch.float32

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype)

    return {name: tensor if stays(name, tensor) else changed(tensor, cast, dtype) for name, tensor in state.items()}


def build(spec: ModelSpec, state: Mapping[str, Tensor], source: object) -> Decoder:
    """A decoder that holds exactly the tensors of ``state``; `InputError` names ``source`` when they don't fit."""
    return StoredWeights(spec, dict(state), source).decoder()
