"""What responses look like: schemas of OpenAI's objects, as far as this server fills them."""

from __future__ import annotations

from typing import Any

from sentinel.infer.batch_request import Finish

Schema = dict[str, Any]  # JSON Schema, 2020-12
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
ENDS = {"enum": [Finish.STOP.value, Finish.LENGTH.value]}


def of(**fields: Any) -> Schema:
    """The schema of an object that has all of these fields, perhaps others too."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def several(one: Schema, least: int = 0) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": one, "minItems": least}


def or_null(one: Schema) -> Schema:
    """The schema of something that may be null."""
    return {"anyOf": [one, {"type": "null"}]}


def only(word: str) -> Schema:
    """The schema of one string."""
    return {"const": word}


def named(name: str) -> Schema:
    """The schema of `SCHEMAS` called ``name``."""
    return {"$ref": f"#/components/schemas/{name}"}


_CHANCE = of(token=TEXT, logprob=NUMBER, bytes=several(WHOLE))
_CHAT_CHANCES = of(content=several({**of(**_CHANCE["properties"], top_logprobs=several(_CHANCE))}))
_CHANCES = of(
    tokens=several(TEXT),
    token_logprobs=several(NUMBER),
    top_logprobs=several({"type": "object", "additionalProperties": NUMBER}),
    text_offset=several(WHOLE),
)
_HEAD: dict[str, Any] = {"id": TEXT, "created": WHOLE, "model": TEXT}
_USAGE = of(prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE)
_MESSAGE = of(role=only("assistant"), content=TEXT)
_PART = of(type=only("output_text"), text=TEXT)
_ITEM = of(type=only("message"), id=TEXT, status=TEXT, role=only("assistant"), content=several(_PART))

SCHEMAS: dict[str, Schema] = {
    "Error": of(error=of(message={**TEXT, "minLength": 1}, type=TEXT, param=or_null(TEXT), code=or_null(TEXT))),
    "Model": of(id=TEXT, object=only("model"), created=WHOLE, owned_by=TEXT, max_model_len=WHOLE),
    "Models": of(object=only("list"), data=several(named("Model"))),
    "Completion": of(
        **_HEAD,
        object=only("text_completion"),
        choices=several(of(index=WHOLE, text=TEXT, logprobs=or_null(_CHANCES), finish_reason=ENDS), 1),
        usage=_USAGE,
    ),
    "ChatCompletion": of(
        **_HEAD,
        object=only("chat.completion"),
        choices=several(of(index=WHOLE, message=_MESSAGE, logprobs=or_null(_CHAT_CHANCES), finish_reason=ENDS), 1),
        usage=_USAGE,
    ),
    "Response": of(
        id=TEXT,
        object=only("response"),
        created_at=WHOLE,
        status={"enum": ["completed", "incomplete"]},
        model=TEXT,
        output=several(_ITEM, 1),
        usage=of(input_tokens=WHOLE, output_tokens=WHOLE, total_tokens=WHOLE),
        metadata={"type": "object"},
    ),
    "Embeddings": of(
        object=only("list"),
        model=TEXT,
        data=several(of(object=only("embedding"), index=WHOLE, embedding={"anyOf": [several(NUMBER, 1), TEXT]}), 1),
        usage=of(prompt_tokens=WHOLE, total_tokens=WHOLE),
    ),
    "Tokens": of(tokens=several(WHOLE), count=WHOLE, max_model_len=WHOLE),
    "Text": of(prompt=TEXT),
    "Health": of(status=only("ok")),
}
