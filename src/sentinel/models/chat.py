"""Chat templates, rendered as Hugging Face's ``apply_chat_template`` renders them, without importing transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sentinel.errors import InputError

Message = Mapping[str, Any]


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant says for training; for a prompt it is its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja reads the attribute from the class)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is, where jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render_chat(template: str, messages: Sequence[Message], special_tokens: Mapping[str, str]) -> str:
    """The prompt that asks for the assistant's next message after ``messages`` (each with "role" and "content").

    ``special_tokens`` are the variables ``bos_token``, ``eos_token`` and so on of the template, which runs in a sandbox.
    Raises `InputError` when the template is broken or refuses the messages.
    """
    if not messages:
        raise InputError("a chat needs at least one message")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson  # pyright: ignore[reportUnknownMemberType]
    environment.globals.update(  # pyright: ignore[reportUnknownMemberType]
        raise_exception=_raise_exception, strftime_now=_strftime_now
    )
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    variables = {**special_tokens, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        return environment.from_string(template).render(messages=plain, **variables)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise InputError(f"the model's chat template can't take these messages ({error}); give a raw prompt") from error
