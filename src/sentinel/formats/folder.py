"""What a model folder says of itself, read without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentinel.errors import InputError
from sentinel.models.earlier_record import earlier_record
from sentinel.models.record import Record
from sentinel.models.tokenizer import read_json

MODEL_TYPE = "sentinel"
EXPORTED_TYPE = "sentinel_decoder"  # of folders for transformers whose layers differ
# Names that a model folder gives a meaning to: a file of somebody else among them would change what our model is.
MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
)  # fmt: skip


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder."""
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} has no config.json, so it is not a model folder")
    return read_json(folder / "config.json")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: safetensors, and where there are none, those of earlier PyTorch."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def read_record(folder: Path) -> Record:
    """How the model in ``folder`` was made; without steps for a folder that does not tell.

    Raises `InputError` for a damaged record.
    """
    config = read_config(folder)
    if config.get("model_type") not in (MODEL_TYPE, EXPORTED_TYPE):
        return Record()
    if "record" in config:
        return Record.from_dict(config["record"], folder)
    return earlier_record(config, folder)
