"""``response_format`` of a request: text, JSON, JSON of a schema, or a regular expression."""

from __future__ import annotations

from sentinel.errors import InputError
from sentinel.infer.grammar import Constraint, Form, Grammars
from sentinel.plain import is_object
from sentinel.serve.bodies import FORM, IGNORE_EOS
from sentinel.serve.errors import ApiError
from sentinel.serve.fields import Fields, wrong

FIELD = FORM.name


def constraint_of(fields: Fields, grammars: Grammars) -> Constraint | None:
    """What the answers keep to, None for any text. Raises `ApiError`, also for a schema or expression that is none."""
    form = form_of(FORM.of(fields))
    if form is None:
        return None
    if IGNORE_EOS.of(fields):
        raise ApiError(400, f"ignore_eos does not go with {FIELD}, which says where an answer ends", param="ignore_eos")
    return begin(form, grammars, FIELD)


def begin(form: Form, grammars: Grammars, param: str) -> Constraint:
    """`Grammars.begin`; raises `ApiError` that names the field."""
    try:
        return grammars.begin(form)
    except InputError as error:
        raise ApiError(400, str(error), param=param, code="invalid_schema") from error


def form_of(value: object) -> Form | None:
    """The form that OpenAI's object asks for (beside its types there is ``{"type": "regex", "regex": ...}``)."""
    if value is None:
        return None
    kind = value.get("type") if is_object(value) else None
    if not is_object(value) or kind not in ("text", "json_object", "json_schema", "regex"):
        raise wrong(FIELD, "an object whose type is text, json_object, json_schema or regex", value)
    if kind == "regex":
        if not isinstance(pattern := value.get("regex"), str):
            raise wrong(f"{FIELD}.regex", "a string", pattern)
        return Form.regex(pattern)
    if kind == "json_schema":
        held = value.get("json_schema")
        schema = held.get("schema") if is_object(held) else None
        if not is_object(schema):
            raise wrong(f"{FIELD}.json_schema.schema", "a JSON schema, which is an object", schema)
        return Form.json_schema(schema)
    return Form.json_object() if kind == "json_object" else None
