"""Fields that a request may have: each is declared once, is read by its declaration, and is described by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sentinel.serve.fields import NOTHING, Fields

Schema = dict[str, Any]  # JSON Schema, 2020-12


class Declared(Protocol):
    """A field of a body. ``schema`` describes the values that it may have."""

    @property
    def name(self) -> str: ...

    @property
    def required(self) -> bool: ...

    @property
    def schema(self) -> Schema: ...


@dataclass(frozen=True)
class Number:
    """A number from ``low`` to ``high``. ``above`` it must lie above ``low``, which is refused by who uses it."""

    name: str
    about: str
    default: float
    low: float
    high: float
    above: bool = False
    required: bool = False

    def of(self, fields: Fields) -> float:
        """Its value in a body."""
        return fields.number(self.name, self.default, self.low, self.high)

    @property
    def schema(self) -> Schema:
        least = "exclusiveMinimum" if self.above else "minimum"
        return {
            "type": ["number", "null"], least: self.low, "maximum": self.high, "default": self.default,
            "description": self.about,
        }  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` to ``high``."""

    name: str
    about: str
    default: int | None
    low: int
    high: int
    required: bool = False

    def of(self, fields: Fields) -> int | None:
        """Its value in a body."""
        return fields.whole(self.name, self.default, self.low, self.high)

    @property
    def schema(self) -> Schema:
        limits = {"minimum": self.low, "maximum": self.high}
        return {"type": ["integer", "null"], **limits, "default": self.default, "description": self.about}


@dataclass(frozen=True)
class Flag:
    """True or false; without it, false."""

    name: str
    about: str
    required: bool = False

    def of(self, fields: Fields) -> bool:
        """Its value in a body."""
        return fields.flag(self.name)

    @property
    def schema(self) -> Schema:
        return {"type": ["boolean", "null"], "default": False, "description": self.about}


@dataclass(frozen=True)
class Text:
    """A string that has to be there, of that form."""

    name: str
    about: str
    form: Mapping[str, Any]
    required: bool = True

    def of(self, fields: Fields) -> str:
        """Its value in a body."""
        return fields.text(self.name)

    @property
    def schema(self) -> Schema:
        return {**self.form, "description": self.about}


@dataclass(frozen=True)
class Texts:
    """A string or up to ``most`` strings, none of them empty."""

    name: str
    about: str
    most: int
    required: bool = False

    def of(self, fields: Fields) -> tuple[str, ...]:
        """Its value in a body."""
        return fields.texts(self.name, self.most)

    @property
    def schema(self) -> Schema:
        one = {"type": "string", "minLength": 1}
        several = {"type": "array", "items": one, "maxItems": self.most}
        return {"anyOf": [one, several, {"type": "null"}], "description": self.about}


@dataclass(frozen=True)
class Other:
    """A field of a form of its own, which is read by a function of its own."""

    name: str
    about: str
    form: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False

    def of(self, fields: Fields) -> Any:
        """Its value in a body, as it is."""
        return fields.get(self.name)

    @property
    def schema(self) -> Schema:
        return {**self.form, "description": self.about}


@dataclass(frozen=True)
class Refused:
    """A field of OpenAI's that changes an answer and is not supported; it may ask for nothing, or for one of ``also``."""

    name: str
    also: tuple[Any, ...] = ()
    required: bool = False

    @property
    def schema(self) -> Schema:
        return {"enum": [*NOTHING, *self.also], "description": "not supported; leave it out"}


def refused(*names: str) -> tuple[Refused, ...]:
    """`Refused` fields of those names."""
    return tuple(Refused(name) for name in names)


def refuse(fields: Fields, body: Sequence[Declared]) -> None:
    """Refuse what the `Refused` fields of a body ask for; `ApiError`."""
    found = (each for each in body if isinstance(each, Refused))
    fields.refuse([each.name for each in found if fields.get(each.name) not in each.also])


def schema_of(body: Sequence[Declared]) -> Schema:
    """The schema of an object with these fields; others are ignored."""
    required = [each.name for each in body if each.required]
    needed = {"required": required} if required else {}
    return {"type": "object", "properties": {each.name: each.schema for each in body}, **needed}
