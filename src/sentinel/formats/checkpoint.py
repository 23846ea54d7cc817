"""Model folders: weights and a JSON file that says what is in them; written whole or not at all.

A sentinel checkpoint is ``config.json`` (``model_type: sentinel``, with the `ModelSpec`), ``model.safetensors`` and the
tokenizer's files. Folders of the supported Hugging Face families are read as they are, and so are those that `export`
writes for transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.files import write_folder
from sentinel.formats import unequal_folder
from sentinel.formats.folder import EXPORTED_TYPE, MODEL_TYPE, read_config
from sentinel.formats.weight_files import read_stored, read_tensors, write_tensors
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import stored_dtype
from sentinel.models.elastic import StoredWidth
from sentinel.models.families import family_of, spec_of
from sentinel.models.families.others import text_part, text_tensors
from sentinel.models.families.weights import State, read_weights, settle_head
from sentinel.models.record import Record
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
    eos = list(tokenizer.eos_ids) if tokenizer is not None else []
    config: dict[str, Any] = {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
    config["dtype"] = str(decoder.dtype).removeprefix("torch.")
    if eos:
        config["eos_token_id"] = eos[0] if len(eos) == 1 else eos
    config.update({"tie_word_embeddings": decoder.spec.tied_head, "spec": decoder.spec.to_dict()})
    config["record"] = (decoder.record if record is None else record).to_dict()
    with write_folder(folder, force) as temporary:
        write_tensors(state, temporary / "model.safetensors", {"format": "pt"})
        if decoder.widths:
            config["widths"] = write_widths(decoder, temporary)
        if tokenizer is not None:
            tokenizer.copy_files(temporary)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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


def read_widths(folder: Path, config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> list[StoredWidth]:
    """The stored widths of the model in ``folder`` with that ``config.json``, in ``dtype``."""
    listed = listed_widths(config)
    try:
        widths: list[StoredWidth] = []
        for entry in listed:
            counts = entry.get("width") or {"groups": entry["kept_groups"], "neurons": entry["kept_neurons"]}
            width = Width(tuple(counts["groups"]), tuple(counts["neurons"]))
            tensors = {name: tensor.to(dtype) for name, tensor in read_tensors(folder / entry["file"]).items()}
            widths.append(StoredWidth(float(entry["heads"]), float(entry["neurons"]), width, tensors))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'config.json'}: its stored widths are damaged ({error})") from error
    for stored, entry in zip(widths, listed, strict=True):
        require_finite(stored.projections, folder / entry["file"])
    return widths


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


def load_checkpoint(folder: str | Path, dtype: torch.dtype | None = torch.float32) -> Decoder:
    """The model in ``folder``, a sentinel checkpoint or one of a supported Hugging Face family or exported, on the CPU.

    It is in ``dtype``, None for that which most of it is stored in. Weights of RMS norms that multiply by 1 + what a family
    stores are in fp32, as are those that a sentinel checkpoint holds so.
    """
    folder = Path(folder)
    spec, config = read_spec(folder), read_config(folder)
    state = read_stored(folder)
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
    dtype = stored_dtype(state.values()) if dtype is None else dtype
    if ours:
        state = _in(dtype, spec, state)
    else:
        spec, state = settle_head(spec, state, family.embedding)
        state = read_weights(family.rules(spec), spec, state, dtype)
    decoder = build(spec, state, folder)
    decoder.store_widths(read_widths(folder, config, dtype))
    return decoder


def _require_floats(state: State, source: object) -> None:
    for name, tensor in state.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise InputError(f"{source}: tensor {name!r} is of type {tensor.dtype}, not of floating-point weights")


def _in(dtype: torch.dtype, spec: ModelSpec, state: State) -> State:
    """The decoder's state in ``dtype``; weights of RMS norms that are stored in fp32 stay so."""

    def stays(name: str, tensor: Tensor) -> bool:
        return spec.norm.kind == "rmsnorm" and name.endswith("norm.weight") and tensor.dtype == torch.float32

    return {name: tensor if stays(name, tensor) else tensor.to(dtype) for name, tensor in state.items()}


def build(spec: ModelSpec, state: State, source: object) -> Decoder:
    """A decoder that holds exactly the tensors of ``state``; `InputError` names ``source`` when they don't fit."""
    decoder = Decoder.empty(spec)
    shapes = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    wrong = sorted(set(shapes) ^ set(state)) or sorted(n for n in shapes if shapes[n] != state[n].shape)
    if wrong:
        raise InputError(f"{source}: tensor {wrong[0]!r} does not fit the specification; the checkpoint is damaged")
    require_finite(state, source)
    decoder.load_state_dict(state, assign=True)
    return decoder.eval()


def require_finite(state: State, source: object) -> None:
    """Raise `InputError` for a tensor with NaN or infinity, of which every result would be NaN."""
    for name, tensor in state.items():
        # The sum needs no memory, and is finite unless a value is not or the sum itself overflows.
        if not math.isfinite(tensor.sum()) and not tensor.isfinite().all():
            raise InputError(f"{source}: tensor {name!r} holds NaN or infinity; mend the weights")
