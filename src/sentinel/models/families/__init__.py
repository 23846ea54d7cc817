"""One file per family, named by its Hugging Face ``model_type``: config mapping and weight-name table.

Every file of this package that has a ``FAMILY`` is a family; there is no other list of them.
"""

from __future__ import annotations

import importlib
import pkgutil

from sentinel.errors import InputError
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import GGUFLayout


def _found() -> dict[str, Family]:
    """The families of this package by ``model_type``."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    families = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.model_type: family for family in sorted(families, key=lambda family: family.model_type)}


FAMILIES: dict[str, Family] = _found()


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face ``model_type``; `InputError` names what is supported otherwise."""
    if model_type not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise InputError(f"model family {model_type!r} is not supported; the supported families are {supported}")
    return FAMILIES[model_type]


def family_of_gguf(architecture: str, path: object) -> tuple[Family, GGUFLayout]:
    """The family of an architecture of llama.cpp and how its files hold it; `InputError` names what is supported."""
    held = [(family, family.gguf) for family in FAMILIES.values() if family.gguf is not None]
    found = {gguf.architecture: (family, gguf) for family, gguf in held if gguf.family == family.model_type}
    if architecture not in found:
        supported = ", ".join(sorted(found))
        raise InputError(f"{path}: GGUF architecture {architecture!r} is not supported ({supported} are)")
    return found[architecture]
