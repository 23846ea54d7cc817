"""Where a model comes from: hub id, folder, GGUF file, the SmolLM2 package, or random weights of a known shape."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from sentinel.errors import InputError
from sentinel.formats.checkpoint import open_checkpoint, read_spec
from sentinel.formats.folder import read_record
from sentinel.formats.gguf.reader import GGUFFile
from sentinel.formats.packages import SMOLLM2_ALIAS, SMOLLM2_DESCRIPTION, gpt2_tokenizer_folder
from sentinel.formats.places import label, locate
from sentinel.formats.random_weights import random_weights
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.formats.stored import StoredWeights
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import AUTO, dtype_named
from sentinel.models.families import family_of
from sentinel.models.origin import Origin
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer


@dataclass
class LoadedModel(Origin):
    """A decoder with its tokenizer, None where there is none, and the record of how it was made."""

    name: str
    decoder: Decoder
    tokenizer: TextTokenizer | None
    record: Record
    description: str = ""

    def __post_init__(self) -> None:
        self.decoder.record = self.record

    @property
    def spec(self) -> ModelSpec:
        return self.decoder.spec

    @property
    def loaded(self) -> LoadedModel:
        """Itself: it can be changed."""
        return self

    def in_fp32(self) -> LoadedModel:
        """Itself, or the same with a decoder in fp32, in which whatever changes a model computes."""
        if self.decoder.dtype == torch.float32:
            return self
        return replace(self, decoder=copy.deepcopy(self.decoder).float())

    @property
    def quantised(self) -> None:
        """None: its weights are not packed."""


@dataclass
class StoredModel(Origin):
    """A model whose weights are still to be read, with its tokenizer, None where there is none, and its record."""

    name: str
    stored: StoredWeights
    tokenizer: TextTokenizer | None
    record: Record
    description: str = ""

    @property
    def spec(self) -> ModelSpec:
        return self.stored.spec

    def load(self) -> LoadedModel:
        """The same with its weights in memory."""
        return LoadedModel(self.name, self.stored.decoder(), self.tokenizer, self.record, self.description)


def load(model: str, *, random_weights: int | None = None, device: str = "cpu", dtype: str = "fp32") -> LoadedModel:
    """Load ``model``: hub id, folder, ``.gguf`` file or ``smollm2-135m``, in ``dtype`` (fp32, bf16, fp16, or "auto", which
    keeps that which most of it is stored in).

    With ``random_weights`` (a seed) only the shape of the model is taken, and the weights are drawn.
    Raises `InputError` for anything that can't be loaded.
    """
    target, wanted = check_device(device), dtype_named(dtype)
    loaded = _open(model, random_weights, wanted, most=wanted is None).load()
    loaded.decoder.to(target)
    return loaded


def open_stored(model: str, *, random_weights: int | None = None, dtype: str = AUTO) -> StoredModel:
    """`load` without reading the weights: they are read tensor by tensor, when they are packed or loaded.

    They are given in ``dtype``; "auto" leaves each as it is stored.
    """
    return _open(model, random_weights, dtype_named(dtype), most=False)


def check_device(device: str) -> torch.device:
    """The torch device of that name; `InputError` when there is no such device here, or it holds no values."""
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} is not available here ({str(error).splitlines()[0]})") from error
    if target.type == "meta":
        raise InputError("device 'meta' holds no values; give cpu, or an accelerator of this machine")
    return target


def _open(model: str, seed: int | None, dtype: torch.dtype | None, *, most: bool) -> StoredModel:
    if seed is not None:
        return _open_random(model, seed, dtype or torch.float32)  # nothing of them is stored
    place = locate(model)
    if place.is_dir():
        said = SMOLLM2_DESCRIPTION if model == SMOLLM2_ALIAS else ""
        stored = open_checkpoint(place, dtype, most=most)  # first, since it says best what is wrong with a config
        return StoredModel(label(model), stored, TextTokenizer.from_folder(place), read_record(place), said)
    file = GGUFFile(place)
    stored = file.stored(file.stored_dtype() if most else dtype)
    return StoredModel(label(model), stored, file.text_tokenizer(), Record(), file.description())


def _open_random(model: str, seed: int, dtype: torch.dtype) -> StoredModel:
    if model in KNOWN_SHAPES:
        config = KNOWN_SHAPES[model]
        spec = family_of(config["model_type"]).spec_from_config(config)
        tokenizer = TextTokenizer.from_folder(gpt2_tokenizer_folder()) if spec.family == "gpt2" else None
    else:
        place = locate(model)
        if place.is_file():
            spec, tokenizer = GGUFFile(place).spec(), None
        else:
            spec, tokenizer = read_spec(place), TextTokenizer.from_folder(place)
    return StoredModel(label(model), random_weights(spec, seed, dtype), tokenizer, Record(weights="random"))
