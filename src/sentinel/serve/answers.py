"""Events of a batcher to OpenAI's objects: a whole answer, or chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sentinel.infer.batch_request import Event, Finish
from sentinel.models.tokenizer import TextTokenizer
from sentinel.serve.errors import ApiError
from sentinel.serve.fields import Fields
from sentinel.serve.requests import Asked

DONE = "[DONE]"


class Answers:
    """The answers to one request as they grow: ``add`` takes events, and gives the chunks that a stream sends."""

    def __init__(self, asked: Asked, tokenizer: TextTokenizer, model: str, fields: Fields) -> None:
        self._asked, self._tokenizer, self._model = asked, tokenizer, model
        self._id = f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._events: list[list[Event]] = [[] for _ in asked.requests]
        self._offsets = [0 for _ in asked.requests]  # characters told, of each

    def first(self) -> list[dict[str, Any]]:
        """Chunks before any token: who speaks, in a chat."""
        if not self._asked.chat:
            return []
        opening = {"role": "assistant", "content": ""}
        return [self._chunk(i, opening, None, None) for i in range(len(self._events))]

    def add(self, index: int, event: Event) -> list[dict[str, Any]]:
        """One event of the answer of that index, and its chunks. Raises `ApiError` where the answer failed."""
        raise_failed(event)
        self._events[index].append(event)
        if not (event.text or event.finish or event.chance):
            return []
        chances = self._chances(index, [event])
        self._offsets[index] += len(event.text)
        reason = None if event.finish is None else event.finish.value
        widths = widths_of(self._events[index]) if event.finish else {}
        if not self._asked.chat:
            return [self._chunk(index, event.text, chances, reason, widths)]
        chunks: list[dict[str, Any]] = []
        if event.text or chances:
            chunks.append(self._chunk(index, {"content": event.text}, chances, None))
        if reason is not None:
            chunks.append(self._chunk(index, {}, None, reason, widths))
        return chunks

    def last(self) -> list[Any]:
        """What ends a stream: tokens used, where ``stream_options.include_usage`` asked for it, and a mark."""
        usage = {**self._head(True), "choices": [], "usage": self.usage()}
        return [usage, DONE] if self._asked.include_usage else [DONE]

    def failed(self, error: ApiError) -> list[Any]:
        """What a stream says that was broken off."""
        return [error.body, DONE]

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, and of all answers, with those that end them."""
        new = sum(event.token is not None for events in self._events for event in events)
        prompt = self._asked.n_prompt_token
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def whole(self) -> dict[str, Any]:
        """The response that is no stream."""
        choices: list[dict[str, Any]] = []
        for index, events in enumerate(self._events):
            self._offsets[index] = 0
            text, finish = "".join(event.text for event in events), events[-1].finish
            said = {"text": text}
            if self._asked.chat:
                said = {"message": {"role": "assistant", "content": text, "refusal": None}}
            assert finish is not None
            chances = self._chances(index, events)
            ended = {"logprobs": chances, "finish_reason": finish.value, **widths_of(events)}
            choices.append({"index": index, **said, **ended})
        return {**self._head(False), "choices": choices, "usage": self.usage()}

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self._asked.chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(
        self, index: int, said: Any, chances: Any, reason: str | None, widths: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        words = {"delta": said} if self._asked.chat else {"text": said}
        choice = {"index": index, **words, "logprobs": chances, "finish_reason": reason, **(widths or {})}
        usage = {"usage": None} if self._asked.include_usage else {}
        return {**self._head(True), "choices": [choice], **usage}

    def _chances(self, index: int, events: Sequence[Event]) -> dict[str, Any] | None:
        found = [event.chance for event in events if event.chance is not None]
        if not found:
            return None
        if self._asked.chat:
            return {
                "content": [
                    {
                        **self._named(chance.token, chance.log_probability),
                        "top_logprobs": [self._named(token, value) for token, value in chance.likeliest],
                    }
                    for chance in found
                ],
                "refusal": None,
            }
        return {
            "tokens": [self._name(chance.token) for chance in found],
            "token_logprobs": [chance.log_probability for chance in found],
            "top_logprobs": [{self._name(token): value for token, value in chance.likeliest} for chance in found],
            "text_offset": list(self._places(self._offsets[index], events)),
        }

    def _places(self, start: int, events: Sequence[Event]) -> Iterator[int]:
        for event in events:
            if event.chance is not None:
                yield start
            start += len(event.text)

    def _named(self, token: int, value: float) -> dict[str, Any]:
        name = self._name(token)
        return {"token": name, "logprob": value, "bytes": list(name.encode())}

    def _name(self, token: int) -> str:
        return self._tokenizer.decode([token]) or self._tokenizer.fast.id_to_token(token) or ""


def widths_of(events: Sequence[Event]) -> dict[str, Any]:
    """How many tokens of an answer were made at which width, where there are several."""
    count = Counter(event.width for event in events if event.width)
    return {"widths": dict(count)} if count else {}


def raise_failed(event: Event) -> None:
    """Raise `ApiError` for an answer that ended without being finished."""
    if event.finish is Finish.SHUTDOWN:
        raise ApiError(503, "the server shuts down, the answer is not finished")
    if event.finish is Finish.ERROR:
        raise ApiError(500, event.message)
