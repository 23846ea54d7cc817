"""``/openapi.json``: the server described by the tables that it is made of (`paths`, `bodies`, `objects`)."""

from __future__ import annotations

import re
from typing import Any

from sentinel import __version__
from sentinel.serve.bodies import MODEL_NAME, TOKEN_ID
from sentinel.serve.declared import schema_of
from sentinel.serve.objects import SCHEMAS, TEXT, named
from sentinel.serve.paths import EVENTS, JSON, PATHS, ServedPath

VERSION = "3.1.0"
ERRORS = {
    400: "a field is wrong, missing or not supported",
    401: "the API key is missing or wrong",
    404: "there is no such model",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "too many requests wait",
    500: "the server failed",
    503: "the server shuts down",
}
_KEY = "key"
_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


def described(model: str, vocab_size: int, with_key: bool) -> dict[str, Any]:
    """The OpenAPI description of a server of ``model`` that asks for a key, or for none."""
    paths: dict[str, Any] = {}
    for path in PATHS:
        operation = _operation(path, with_key)
        paths[_PARAMETER.sub(r"{\1}", path.path)] = {path.method.lower(): operation}
    of_model = {MODEL_NAME: {"enum": [model]}, TOKEN_ID: {"type": "integer", "minimum": 0, "maximum": vocab_size - 1}}
    components: dict[str, Any] = {"schemas": {**SCHEMAS, **of_model}}
    if with_key:
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
    info = {
        "title": "Sentinel",
        "version": __version__,
        "description": f"{model} over HTTP, for OpenAI's clients. Fields that are not described are ignored.",
    }
    return {"openapi": VERSION, "info": info, "paths": paths, "components": components}


def _operation(path: ServedPath, with_key: bool) -> dict[str, Any]:
    guarded = with_key and not path.open
    statuses: list[int] = [*path.errors, 500, *([401] if guarded else [])]
    failed = {str(status): _response(ERRORS[status], {JSON: named("Error")}) for status in sorted(statuses)}
    operation: dict[str, Any] = {
        "operationId": path.handler,
        "summary": path.about,
        "responses": {"200": _response(path.about, {kind: _content(path, kind) for kind in path.contents}), **failed},
    }
    if guarded:
        operation["security"] = [{_KEY: []}]
    if path.body:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema_of(path.body)}}}
    names = [found.group(1) for found in _PARAMETER.finditer(path.path)]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    return operation


def _content(path: ServedPath, kind: str) -> dict[str, Any]:
    if kind == JSON:
        return named(path.answer) if path.answer else {"type": "object"}
    if kind == EVENTS:  # each event, whose data are a chunk of the answer, or [DONE]
        return {"type": "object", "properties": {"data": TEXT, "event": TEXT}, "required": ["data"]}
    return {"type": "string", "description": path.about}


def _response(about: str, contents: dict[str, Any]) -> dict[str, Any]:
    return {"description": about, "content": {kind: {"schema": schema} for kind, schema in contents.items()}}
