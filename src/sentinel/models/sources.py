"""Where a model comes from: hub id, folder, GGUF file, the SmolLM2 package, or random weights of a known shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sentinel.errors import InputError
from sentinel.models.checkpoint import build, load_checkpoint, read_spec
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.families.weights import read_weights
from sentinel.models.folder import read_record
from sentinel.models.gguf_file import GGUFFile
from sentinel.models.origin import Origin
from sentinel.models.packages import SMOLLM2_ALIAS, SMOLLM2_DESCRIPTION, gpt2_tokenizer_folder, smollm2_folder
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer

HUB_FILES = ("*.json", "*.safetensors", "merges.txt", "vocab.txt", "*.model", "*.jinja")

# Configs of models whose shape is known without any download.
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"model_type": "gpt2", "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"model_type": "gpt2", "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"model_type": "gpt2", "n_layer": 48, "n_head": 25, "n_embd": 1600},
    SMOLLM2_ALIAS: {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
    },
}


@dataclass
class LoadedModel(Origin):
    """A decoder with its tokenizer, None where there is none, and the record of how it was made."""

    name: str
    decoder: Decoder
    tokenizer: TextTokenizer | None
    record: Record
    description: str = ""

    @property
    def spec(self) -> ModelSpec:
        return self.decoder.spec


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
    from huggingface_hub import snapshot_download
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
            return Path(snapshot_download(model, allow_patterns=list(HUB_FILES), local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(model, allow_patterns=list(HUB_FILES)))
    except HFValidationError as error:
        raise InputError(f"{model!r} is not a folder here and not a valid hub id") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{model!r} is not a folder here and the hub has no model of that name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{model!r} is not a folder here, not in the Hugging Face cache, and the hub can't be reached; "
            f"without a connection there are smollm2-135m and, with --random-weights 0, the shapes {known}"
        ) from error


def _load_real(model: str) -> LoadedModel:
    place = locate(model)
    if place.is_dir():
        said = SMOLLM2_DESCRIPTION if model == SMOLLM2_ALIAS else ""
        decoder = load_checkpoint(place)  # first, since it says best what is wrong with a config
        return LoadedModel(_label(model), decoder, TextTokenizer.from_folder(place), read_record(place), said)
    file = GGUFFile(place)
    config = file.config()
    family = family_of("llama")
    spec = family.spec_from_config(config)
    decoder = build(spec, read_weights(family.weight_rules(spec), spec, file.weights()), place)
    tokenizer = TextTokenizer(file.tokenizer(), file.eos_ids(), settings=file.tokenizer_config())
    return LoadedModel(_label(model), decoder, tokenizer, Record(), file.description())


def _label(model: str) -> str:
    """How the model is called in tables: a hub id as it is, a path by its last part."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def _load_random(model: str, seed: int) -> LoadedModel:
    if model in KNOWN_SHAPES:
        config = KNOWN_SHAPES[model]
        spec = family_of(config["model_type"]).spec_from_config(config)
        tokenizer = TextTokenizer.from_folder(gpt2_tokenizer_folder()) if spec.family == "gpt2" else None
    else:
        place = locate(model)
        if place.is_file():
            spec, tokenizer = family_of("llama").spec_from_config(GGUFFile(place).config()), None
        else:
            spec, tokenizer = read_spec(place), TextTokenizer.from_folder(place)
    return LoadedModel(_label(model), random_decoder(spec, seed), tokenizer, Record(weights="random"))


def random_decoder(spec: ModelSpec, seed: int) -> Decoder:
    """A decoder of that shape with matrices drawn from N(0, 0.02), norms of 1 and biases of 0, as GPT-2 starts."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder.empty(spec).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return decoder.eval()
