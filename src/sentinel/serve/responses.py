"""``/v1/responses``: OpenAI's newer shape of a chat, without what is kept between requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from sentinel.infer.batch_request import Event, Finish
from sentinel.infer.grammar import Grammars
from sentinel.models.tokenizer import TextTokenizer
from sentinel.plain import is_list, is_object
from sentinel.serve import bodies
from sentinel.serve.answers import raise_failed, widths_of
from sentinel.serve.declared import refuse
from sentinel.serve.errors import ApiError
from sentinel.serve.fields import Fields, wrong
from sentinel.serve.requests import Asked, Limits, chat


def read(fields: Fields, tokenizer: TextTokenizer, limits: Limits, grammars: Grammars) -> Asked:
    """A request, as the chat that it is. Raises `ApiError`."""
    refuse(fields, bodies.RESPONSE)
    if bodies.TRUNCATION.of(fields) not in (None, "disabled"):
        raise ApiError(400, "a prompt is never cut here; leave out truncation", param="truncation")
    if not is_object(metadata := bodies.METADATA.of(fields) or {}):
        raise wrong("metadata", "an object", metadata)
    body = {each.name: fields.get(each.name) for each in bodies.TAKEN_OVER}
    body["messages"] = _messages(fields)
    body["max_completion_tokens"] = bodies.MAX_OUTPUT_TOKENS.of(fields)
    body["response_format"] = _format(bodies.TEXT.of(fields))
    return chat(Fields(body), tokenizer, limits, grammars)


def _messages(fields: Fields) -> list[Any]:
    given, instructions = bodies.INPUT.of(fields), bodies.INSTRUCTIONS.of(fields)
    if instructions is not None and not isinstance(instructions, str):
        raise wrong("instructions", "a string", instructions)
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not is_list(given) or not given:
        raise wrong("input", "a string or a list of messages", given)
    first = [] if instructions is None else [{"role": "system", "content": instructions}]
    return [*first, *(_message(i, item) for i, item in enumerate(given))]


def _message(number: int, item: Any) -> dict[str, Any]:
    place = f"input[{number}]"
    if not is_object(item) or item.get("type", "message") != "message":
        raise wrong(place, "a message with role and content", item)
    content = item.get("content")
    if is_list(content):
        if not all(
            is_object(p) and p.get("type") in bodies.RESPONSE_PARTS and isinstance(p.get("text"), str) for p in content
        ):
            raise ApiError(400, f"{place}.content may hold parts of text only", param=f"{place}.content")
        content = "".join(part["text"] for part in content)
    return {"role": item.get("role"), "content": content}


def _format(text: Any) -> Any:
    """``text.format`` as the ``response_format`` of a chat."""
    if text is None:
        return None
    if not is_object(text):
        raise wrong("text", "an object", text)
    found = text.get("format")
    if is_object(found) and found.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": found}
    return found


class Response:
    """The response to one request as it grows; used as `Answers` are."""

    def __init__(self, asked: Asked, tokenizer: TextTokenizer, model: str, fields: Fields) -> None:
        self._asked, self._model, self._fields = asked, model, fields
        self._id, self._item_id = f"resp_{secrets.token_hex(16)}", f"msg_{secrets.token_hex(16)}"
        self._created, self._events, self._number = int(time.time()), list[Event](), 0

    def first(self) -> list[dict[str, Any]]:
        """Events before any token."""
        return [
            self._event("response.created", response=self._object("in_progress")),
            self._event("response.in_progress", response=self._object("in_progress")),
            self._event("response.output_item.added", output_index=0, item=self._item("in_progress", [])),
            self._event("response.content_part.added", **self._place, part=self._part("")),
        ]

    def add(self, index: int, event: Event) -> list[dict[str, Any]]:
        """One event of the answer, and those of the stream. Raises `ApiError` where the answer failed."""
        raise_failed(event)
        self._events.append(event)
        if not event.text:
            return []
        return [self._event("response.output_text.delta", **self._place, delta=event.text, logprobs=[])]

    def last(self) -> list[Any]:
        """Events after all tokens."""
        part = self._part(self._text)
        status = self._status
        return [
            self._event("response.output_text.done", **self._place, text=self._text, logprobs=[]),
            self._event("response.content_part.done", **self._place, part=part),
            self._event("response.output_item.done", output_index=0, item=self._item(status, [part])),
            self._event(f"response.{status}", response=self.whole()),
        ]

    def failed(self, error: ApiError) -> list[Any]:
        """What a stream says that was broken off."""
        told = {"code": error.code, "message": error.message, "param": error.param}
        return [self._event("error", **told, error=error.body["error"])]

    def whole(self) -> dict[str, Any]:
        """The response that is no stream."""
        return self._object(self._status, [self._item(self._status, [self._part(self._text)])])

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    @property
    def _text(self) -> str:
        return "".join(event.text for event in self._events)

    @property
    def _status(self) -> str:
        return "incomplete" if self._events[-1].finish is Finish.LENGTH else "completed"

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, parts: Sequence[Any]) -> dict[str, Any]:
        return {"type": "message", "id": self._item_id, "status": status, "role": "assistant", "content": list(parts)}

    def _object(self, status: str, output: Sequence[Any] = ()) -> dict[str, Any]:
        settings = self._asked.requests[0].settings
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self._fields.get("instructions"),
            "max_output_tokens": self._fields.get("max_output_tokens"),
            "metadata": self._fields.get("metadata") or {},
            "model": self._model,
            "output": list(output),
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": settings.temperature,
            "text": self._fields.get("text") or {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": settings.top_p,
            "truncation": "disabled",
            "usage": self._usage() if output else None,
            **widths_of(self._events),
        }

    def _usage(self) -> dict[str, Any]:
        prompt, new = self._asked.n_prompt_token, sum(event.token is not None for event in self._events)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + new,
        }
