"""One file per family, named by its Hugging Face ``model_type``: config mapping and weight-name table.

Every file of this package that has a ``FAMILY`` is a family; there is no other list of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from sentinel.errors import InputError
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import UNEQUAL_LAYERS, GGUFLayout
from sentinel.models.families.others import kind_of, kind_of_gguf, text_part
from sentinel.models.spec import ModelSpec


def _found() -> dict[str, Family]:
    """The families of this package by ``model_type``."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    families = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.model_type: family for family in sorted(families, key=lambda family: family.model_type)}


FAMILIES: dict[str, Family] = _found()


def family_of(model_type: str, config: Mapping[str, Any] | None = None) -> Family:
    """The family of a Hugging Face ``model_type``; `InputError` names what is supported otherwise.

    ``config`` tells what kind of model is refused.
    """
    if model_type not in FAMILIES:
        kind = kind_of(config or {"model_type": model_type})
        told = "" if kind is None else f": it is {kind}, and only dense decoders are taken"
        supported = ", ".join(FAMILIES)
        raise InputError(f"model family {model_type!r} is not supported{told}; the supported families are {supported}")
    return FAMILIES[model_type]


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """The specification of a Hugging Face config: of its text part, where it is a multimodal model's (`text_part`).

    Raises `InputError` for a family or a field that is not supported, by name.
    """
    held = text_part(config) or dict(config)
    return family_of(str(held.get("model_type")), held).spec_from_config(held)


def family_of_gguf(architecture: str, fields: Mapping[str, object], path: object) -> tuple[Family, GGUFLayout]:
    """The family of an architecture of llama.cpp and how its files hold it; `InputError` names what is supported.

    ``fields`` are those of the architecture in the file, without its name, which tell what kind of model is refused.
    """
    held = [(family, family.gguf) for family in FAMILIES.values() if family.gguf is not None]
    found = {gguf.architecture: (family, gguf) for family, gguf in held if gguf.family == family.model_type}
    kind = kind_of_gguf(architecture, fields)
    if kind is not None:
        raise InputError(f"{path} (GGUF architecture {architecture!r}) is {kind}, and only dense decoders are taken")
    if architecture not in found:
        supported = ", ".join(sorted({*found, UNEQUAL_LAYERS}))
        raise InputError(f"{path}: GGUF architecture {architecture!r} is not supported ({supported} are)")
    return found[architecture]
