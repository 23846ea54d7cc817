"""One file per family, named by its Hugging Face ``model_type``: config mapping and weight-name table.

Every file of this package that has a ``FAMILY`` is a family; there is no other list of them.
"""

from __future__ import annotations

import importlib
import pkgutil

from sentinel.errors import InputError
from sentinel.models.families.family import Family


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
