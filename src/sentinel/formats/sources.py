"""Where a model comes from: hub id, folder, GGUF file, the SmolLM2 package, or random weights of a known shape."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from sentinel.errors import InputError
from sentinel.formats.checkpoint import build, load_checkpoint, read_spec
from sentinel.formats.folder import read_record
from sentinel.formats.gguf.reader import GGUFFile
from sentinel.formats.packages import SMOLLM2_ALIAS, SMOLLM2_DESCRIPTION, gpt2_tokenizer_folder
from sentinel.formats.places import label, locate
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import dtype_named
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


def load(model: str, *, random_weights: int | None = None, device: str = "cpu", dtype: str = "fp32") -> LoadedModel:
    """Load ``model``: hub id, folder, ``.gguf`` file or ``smollm2-135m``, in ``dtype`` (fp32, bf16, fp16, or "auto", which
    keeps that which most of it is stored in).

    With ``random_weights`` (a seed) only the shape of the model is taken, and the weights are drawn.
    Raises `InputError` for anything that can't be loaded.
    """
    target, wanted = check_device(device), dtype_named(dtype)
    if random_weights is not None:
        loaded = _load_random(model, random_weights, wanted or torch.float32)  # nothing of them is stored
    else:
        loaded = _load_real(model, wanted)
    loaded.decoder.to(target)
    return loaded


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


def _load_real(model: str, dtype: torch.dtype | None) -> LoadedModel:
    place = locate(model)
    if place.is_dir():
        said = SMOLLM2_DESCRIPTION if model == SMOLLM2_ALIAS else ""
        decoder = load_checkpoint(place, dtype)  # first, since it says best what is wrong with a config
        return LoadedModel(label(model), decoder, TextTokenizer.from_folder(place), read_record(place), said)
    file = GGUFFile(place)
    spec, dtype = file.spec(), file.stored_dtype() if dtype is None else dtype
    decoder = build(spec, file.state(dtype), place)
    return LoadedModel(label(model), decoder, file.text_tokenizer(), Record(), file.description())


def _load_random(model: str, seed: int, dtype: torch.dtype) -> LoadedModel:
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
    return LoadedModel(label(model), random_decoder(spec, seed, dtype), tokenizer, Record(weights="random"))


def random_decoder(spec: ModelSpec, seed: int, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder of that shape with matrices drawn from N(0, 0.02), norms of 1 and biases of 0, as GPT-2 starts.

    In another ``dtype`` its numbers are those of fp32, rounded.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    decoder = Decoder.empty(spec).to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.empty(parameter.shape, device="cpu").normal_(0.0, 0.02, generator=generator))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return decoder.eval()
