"""Where a model comes from: hub id, folder, GGUF file, the SmolLM2 package, or random weights of a known shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sentinel.errors import InputError
from sentinel.formats.checkpoint import build, load_checkpoint, read_spec
from sentinel.formats.folder import read_record
from sentinel.formats.gguf.reader import GGUFFile
from sentinel.formats.packages import SMOLLM2_ALIAS, SMOLLM2_DESCRIPTION, gpt2_tokenizer_folder
from sentinel.formats.places import label, locate
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.families.weights import read_weights
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

    @property
    def quantised(self) -> None:
        """None: its weights are not packed."""


def load(model: str, *, random_weights: int | None = None, device: str = "cpu") -> LoadedModel:
    """Load ``model``: hub id, folder, ``.gguf`` file or ``smollm2-135m``, in fp32.

    With ``random_weights`` (a seed) only the shape of the model is taken, and the weights are drawn.
    Raises `InputError` for anything that can't be loaded.
    """
    target = check_device(device)
    loaded = _load_random(model, random_weights) if random_weights is not None else _load_real(model)
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


def _load_real(model: str) -> LoadedModel:
    place = locate(model)
    if place.is_dir():
        said = SMOLLM2_DESCRIPTION if model == SMOLLM2_ALIAS else ""
        decoder = load_checkpoint(place)  # first, since it says best what is wrong with a config
        return LoadedModel(label(model), decoder, TextTokenizer.from_folder(place), read_record(place), said)
    file = GGUFFile(place)
    spec = file.spec()
    decoder = build(spec, read_weights(file.family.rules(spec), spec, file.weights()), place)
    tokenizer = TextTokenizer(file.tokenizer(), file.eos_ids(), settings=file.tokenizer_config())
    return LoadedModel(label(model), decoder, tokenizer, Record(), file.description())


def _load_random(model: str, seed: int) -> LoadedModel:
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
    return LoadedModel(label(model), random_decoder(spec, seed), tokenizer, Record(weights="random"))


def random_decoder(spec: ModelSpec, seed: int) -> Decoder:
    """A decoder of that shape with matrices drawn from N(0, 0.02), norms of 1 and biases of 0, as GPT-2 starts."""
    generator = torch.Generator("cpu").manual_seed(seed)
    decoder = Decoder.empty(spec).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return decoder.eval()
