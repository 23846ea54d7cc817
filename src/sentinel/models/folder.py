"""What a model folder says of itself, read without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentinel.errors import InputError
from sentinel.models.tokenizer import read_json

MODEL_TYPE = "sentinel"
WRITTEN = ("model_type", "architectures", "dtype", "eos_token_id", "tie_word_embeddings", "spec", "levels", "precision")


def is_checkpoint(folder: Path) -> bool:
    """True for a folder that sentinel wrote and may replace."""
    return (folder / "config.json").exists() and read_json(folder / "config.json").get("model_type") == MODEL_TYPE


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder."""
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} has no config.json, so it is not a model folder")
    return read_json(folder / "config.json")


def history_of(model: str) -> dict[str, Any]:
    """How the checkpoint ``model`` was made, by its ``config.json``: pruning and what it was calibrated on, say.

    Empty for everything but a sentinel checkpoint. A command that writes a changed model passes it on.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir() or not is_checkpoint(folder):
        return {}
    return {name: value for name, value in read_config(folder).items() if name not in WRITTEN}
