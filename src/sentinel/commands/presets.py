"""Presets: what `sentinel recommend --save NAME` wrote and `sentinel generate --preset NAME` takes."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from sentinel.errors import InputError
from sentinel.files import make_folder, write_text
from sentinel.formats.folder import read_record
from sentinel.models.record import Pruned, Quantised, Record

if TYPE_CHECKING:
    from sentinel.commands.engine import EngineChoice

SCHEMA = "sentinel-preset/1"
FIELDS = {"model": str, "level": int, "precision": str, "heads": float, "neurons": float, "reason": str}


@dataclass(frozen=True)
class Preset:
    """How to run ``model``, and why."""

    model: str
    level: int
    precision: str
    heads: float
    neurons: float
    reason: str


def presets_folder() -> Path:
    """The user's configuration folder, or one beside the cache that SENTINEL_CACHE names."""
    cache = os.environ.get("SENTINEL_CACHE")
    if cache:
        place = Path(cache).expanduser().resolve()
        return place.parent / f"{place.name}-presets"
    return Path(platformdirs.user_config_dir("sentinel-ai")) / "presets"


def preset_file(name: str) -> Path:
    """Where the preset of that name is kept; `InputError` for a name that is no plain word."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"{name!r} is not a preset's name; use letters, digits, '-', '_' and '.'")
    return presets_folder() / f"{name}.json"


def save_preset(name: str, preset: Preset) -> Path:
    """Write a preset, whole or not at all; one of the same name is replaced."""
    path = preset_file(name)
    make_folder(path.parent)
    write_text(path, json.dumps({"schema": SCHEMA, **asdict(preset)}, indent=1) + "\n")
    return path


def load_preset(name: str) -> Preset:
    """The preset of that name; `InputError` when there is none or when its file is damaged."""
    path = preset_file(name)
    if not path.exists():
        stored = ", ".join(sorted(p.stem for p in presets_folder().glob("*.json"))) or "none"
        raise InputError(
            f"there is no preset {name!r}; stored are {stored}; 'sentinel recommend --save NAME' makes one"
        )
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or set(data) - {"schema"} != set(FIELDS):
            raise ValueError("its fields are not those of a preset")
        values = {field: data[field] for field in FIELDS}
        wrong = [f for f, kind in FIELDS.items() if not isinstance(values[f], (int, float) if kind is float else kind)]
        if wrong:
            raise ValueError(f"{wrong[0]} is {values[wrong[0]]!r}")
        return Preset(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a preset ({error}); save it again with 'sentinel recommend'") from error


def with_preset(choice: EngineChoice, name: str, model: str) -> EngineChoice:
    """``choice`` for ``model``, with what it leaves open filled in by the preset of that name.

    Raises `InputError` for an unknown preset and for one of another model.
    """
    preset = load_preset(name)
    record = _record_of(model)
    own = Path(model).expanduser()
    names = {model, own.resolve().name if own.exists() else model}
    if preset.model not in names and preset.model not in {step.source for step in record.steps}:
        raise InputError(
            f"preset {name!r} is of {preset.model}, not of {model}; run {preset.model}, or what 'sentinel prune' made of it"
        )
    if choice.level is None:
        precision = choice.precision or (preset.precision if preset.level == 3 else None)
        choice = replace(choice, level=preset.level, precision=precision)
    removed = (preset.heads, preset.neurons)
    if choice.heads is None and choice.neurons is None and not _removed_for_good(record, removed):
        choice = replace(choice, heads=preset.heads, neurons=preset.neurons)
    return choice


def _record_of(model: str) -> Record:
    """How a model folder was made; without steps for any other model."""
    folder = Path(model).expanduser()
    return read_record(folder) if (folder / "config.json").exists() else Record()


def _removed_for_good(record: Record, removed: tuple[float, float]) -> bool:
    """True for a model that was pruned to just these ratios, with no levels to choose from."""
    shares = [
        *((s.heads[0], s.neurons[0]) for s in record.steps if isinstance(s, Pruned) and not s.elastic and s.heads),
        *((s.heads, s.neurons) for s in record.steps if isinstance(s, Quantised)),
    ]
    return any(all(abs(a - b) < 0.02 for a, b in zip(removed, share, strict=True)) for share in shares)
