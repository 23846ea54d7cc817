"""The record of checkpoints that version 0.1 wrote, from loose fields of their ``config.json``. They are only read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sentinel.errors import InputError
from sentinel.models.record import Adapted, Integrated, Pruned, Quantised, Record, Recovered, Step
from sentinel.plain import is_row

UNNAMED = "another model"  # where a checkpoint does not tell


def earlier_record(config: Mapping[str, Any], source: object) -> Record:
    """The steps that loose fields of ``config`` tell of; `InputError` names ``source`` and the field that is damaged."""
    steps: list[Step] = []
    for name, read in (
        ("pruning", _pruned),
        ("configuration", _integrated),
        ("recovery", _recovered),
        ("quantisation", _quantised),
    ):
        if name not in config:
            continue
        try:
            steps.append(read(config))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{source}: its record of {name} is damaged, so that seen text can't be told; make it anew"
            ) from error
    if "precision" in config and "quantisation" not in config:
        steps.append(Quantised(source=_name(config.get("source")), precision=_name(config["precision"])))
    return Record(tuple(steps), "random" if config.get("weights") == "random" else "real")


def _pruned(config: Mapping[str, Any]) -> Step:
    found = config["pruning"]
    source, documents = _name(found.get("source")), _documents(found.get("calibration_documents", ()))
    if found.get("criterion") == "adapt":
        return Adapted(source=source, budget="unknown", documents=documents)
    return Pruned(
        source=source,
        criterion=str(found.get("criterion", "an unknown criterion")),
        heads=tuple(float(ratio) for ratio in found.get("heads", ())),
        neurons=tuple(float(ratio) for ratio in found.get("neurons", ())),
        compensated=bool(found.get("compensated", False)),
        elastic="levels" in config,
        texts=str(found.get("calibration", "")) if documents else "",
        tokens=int(found.get("calibration_tokens", 0)),
        documents=documents,
        removal_ranks=tuple(tuple(int(rank) for rank in layer) for layer in found.get("removal_ranks", ())),
    )


def _integrated(config: Mapping[str, Any]) -> Step:
    baseline = config.get("baseline_source")
    return Integrated(
        source=_name(config.get("source")),
        configuration=_name(config["configuration"]),
        baseline=None if baseline is None else _name(baseline),
    )


def _recovered(config: Mapping[str, Any]) -> Step:
    found = config["recovery"]
    return Recovered(
        source=UNNAMED,
        teacher=_name(found.get("teacher")),
        texts=str(found.get("text", "")),
        settings=dict(found.get("settings", {})),
        steps=int(found.get("steps", 0)),
        tokens=int(found.get("tokens", 0)),
        seconds=float(found.get("seconds", 0.0)),
        documents=_documents(found.get("documents", ())),
    )


def _quantised(config: Mapping[str, Any]) -> Step:
    found = config["quantisation"]
    return Quantised(
        source=_name(config.get("source")),
        precision=_name(config.get("precision")),
        texts=str(found.get("calibration", "")),
        tokens=int(found.get("calibration_tokens", 0)),
        documents=_documents(found.get("calibration_documents", ())),
    )


def _name(value: object) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value or UNNAMED


def _documents(value: object) -> tuple[str, ...]:
    """Fingerprints of documents."""
    if not is_row(value) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{value!r} are no fingerprints")
    return tuple(value)
