"""What a model folder says of itself, read without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentinel.errors import InputError
from sentinel.models.earlier_record import earlier_record
from sentinel.models.record import Record
from sentinel.models.tokenizer import read_json

MODEL_TYPE = "sentinel"


def is_checkpoint(folder: Path) -> bool:
    """True for a folder that sentinel wrote and may replace."""
    return (folder / "config.json").exists() and read_json(folder / "config.json").get("model_type") == MODEL_TYPE


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder."""
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} has no config.json, so it is not a model folder")
    return read_json(folder / "config.json")


def read_record(folder: Path) -> Record:
    """How the model in ``folder`` was made; without steps for a folder that sentinel did not write.

    Raises `InputError` for a damaged record.
    """
    config = read_config(folder)
    if config.get("model_type") != MODEL_TYPE:
        return Record()
    if "record" in config:
        return Record.from_dict(config["record"], folder)
    return earlier_record(config, folder)
