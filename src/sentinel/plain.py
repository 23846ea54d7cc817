"""Plain values, as JSON has them: what a value is, told to the type checker too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """A JSON object."""
    return isinstance(value, dict)


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """A JSON object, or one that can't be changed."""
    return isinstance(value, Mapping)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """A JSON list."""
    return isinstance(value, list)


def is_row(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """A JSON list, or a tuple as dataclasses hold it."""
    return isinstance(value, (list, tuple))
