"""Quantised checkpoints: a folder that level 3 runs without importing torch.

It holds ``config.json``, ``model.native.safetensors``, the tokenizer's files, and for an elastic model one
``level-N.native.safetensors`` per stored pruning level, so that a level is set without quantising again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentinel.errors import InputError
from sentinel.files import write_folder
from sentinel.infer.native import Level, NativeWeights
from sentinel.models.folder import MODEL_TYPE, read_config
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer

WEIGHTS_FILE = "model.native.safetensors"


@dataclass(frozen=True)
class StoredLevel:
    """A pruning level of a quantised model and the shares of heads and neurons that it leaves out."""

    heads: float
    neurons: float
    level: Level


def save_quantised(
    weights: NativeWeights,
    levels: list[StoredLevel],
    folder: str | Path,
    tokenizer: TextTokenizer | None,
    record: Record,
    *,
    force: bool = False,
) -> None:
    """Write a quantised checkpoint with the ``record`` of how it was made, whole or not at all; see `write_folder`."""
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "precision": weights.precision,
        "spec": weights.spec.to_dict(),
        "record": record.to_dict(),
    }
    if tokenizer is not None and tokenizer.eos_ids:
        config["eos_token_id"] = list(tokenizer.eos_ids)
    if levels:
        config["levels"] = [
            {"heads": stored.heads, "neurons": stored.neurons, "file": f"level-{i}.native.safetensors"}
            for i, stored in enumerate(levels)
        ]
    with write_folder(folder, force) as temporary:
        weights.save(temporary / WEIGHTS_FILE)
        for stored, entry in zip(levels, config.get("levels", ()), strict=True):
            stored.level.save(temporary / entry["file"], weights.precision)
        if tokenizer is not None:
            tokenizer.copy_files(temporary)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def is_quantised(folder: Path) -> bool:
    """True for a folder that `save_quantised` wrote."""
    return (folder / WEIGHTS_FILE).exists()


def load_quantised(folder: Path) -> tuple[NativeWeights, TextTokenizer | None]:
    """The weights and the tokenizer of a quantised checkpoint; `InputError` when they do not belong together."""
    weights = NativeWeights.load(folder / WEIGHTS_FILE)
    if ModelSpec.from_dict(read_config(folder).get("spec", {})) != weights.spec:
        raise InputError(f"{folder}: config.json and {WEIGHTS_FILE} are of different models; quantise again")
    return weights, TextTokenizer.from_folder(folder)


def stored_ratios(folder: Path) -> dict[tuple[float, float], str]:
    """The files of a quantised checkpoint's pruning levels by the shares of heads and neurons that they leave out."""
    try:
        listed = read_config(folder).get("levels", ())
        return {(float(entry["heads"]), float(entry["neurons"])): str(entry["file"]) for entry in listed}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'}: its pruning levels are damaged ({error}); quantise again"
        ) from error


def load_level(folder: Path, weights: NativeWeights, heads: float, neurons: float) -> Level:
    """A stored pruning level of a quantised checkpoint; `InputError` that names the stored ones for another."""
    stored = stored_ratios(folder)
    for key, file in stored.items():
        if (round(heads, 4), round(neurons, 4)) == (round(key[0], 4), round(key[1], 4)):
            return Level.load(folder / file, weights.spec, weights.precision)
    if not stored:
        raise InputError(f"{folder} is quantised at one pruning level; leave out --heads and --neurons")
    known = ", ".join(f"{h:g}/{n:g}" for h, n in sorted(stored))
    raise InputError(f"{folder} stores no level {heads:g}/{neurons:g} of heads and neurons; stored are {known}")
