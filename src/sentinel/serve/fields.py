"""Typed fields of a JSON object that a client sent; what is wrong is refused by the field's name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sentinel.plain import is_list, is_object
from sentinel.serve.errors import ApiError

NOTHING: tuple[Any, ...] = (None, False, [], {}, 0, "", "none", "auto")  # what a field holds that asks for nothing


class Fields:
    """Reads an object's fields; one that is missing or null is its default. Raises `ApiError` 400."""

    def __init__(self, body: object) -> None:
        if not is_object(body):
            raise ApiError(400, "the body must be a JSON object")
        self.body = body

    def get(self, name: str) -> Any:
        """The field as it is, None where it is missing."""
        return self.body.get(name)

    def text(self, name: str) -> str:
        """A string that has to be there."""
        value = self.get(name)
        if not isinstance(value, str):
            raise wrong(name, "a string", value)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong(name, "true or false", value)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A finite number of at least ``low`` and at most ``high``."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise wrong(name, "a number", value)
        if not low <= value <= high:  # as it is: a whole number may be too large for a float
            raise ApiError(400, f"{name} must be from {low:g} to {high:g}, not {value!r:.80}", param=name)
        return float(value)

    def whole(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """A whole number of at least ``low`` and at most ``high``."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(name, "a whole number", value)
        if not low <= value <= high:
            raise ApiError(400, f"{name} must be from {low} to {high}, not {value}", param=name)
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A string or a list of strings, none of them empty."""
        value = self.get(name)
        found: list[Any] = [] if value is None else value if is_list(value) else [value]
        if not all(isinstance(text, str) and text for text in found):
            raise wrong(name, "a string or a list of strings, none of them empty", value)
        if len(found) > most:
            raise ApiError(400, f"{name} may hold at most {most} strings, not {len(found)}", param=name)
        return tuple(found)

    def refuse(self, names: Collection[str]) -> None:
        """Refuse fields that change an answer and are not supported, unless they ask for nothing."""
        for name in names:
            if self.get(name) not in NOTHING:
                raise ApiError(
                    400, f"{name} is not supported here; leave it out", param=name, code="unsupported_parameter"
                )


def wrong(name: str, wanted: str, value: object) -> ApiError:
    """The error of a field that has another type."""
    given = "missing" if value is None else f"{value!r:.80}"
    return ApiError(400, f"{name} must be {wanted}, not {given}", param=name, code="invalid_type")
