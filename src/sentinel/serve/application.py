"""The HTTP application: OpenAI's paths, and those by which a server is watched."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sentinel.errors import InputError
from sentinel.infer.batch_request import QueueFullError, ShuttingDownError
from sentinel.infer.batching import Batcher
from sentinel.infer.grammar import Grammars
from sentinel.models.tokenizer import TextTokenizer
from sentinel.serve import bodies, embeddings, requests, responses
from sentinel.serve.answers import Answers, raise_failed
from sentinel.serve.errors import ApiError
from sentinel.serve.fields import Fields, wrong
from sentinel.serve.gate import Gate
from sentinel.serve.metrics import Metrics
from sentinel.serve.openapi import described
from sentinel.serve.paths import PATHS
from sentinel.serve.requests import Asked, Limits
from sentinel.serve.running import ClientGoneError, EventStream, Running
from sentinel.serve.settings import ServeSettings

if TYPE_CHECKING:
    from sentinel.serve.page.routes import Page

Reader = Callable[[Fields, TextTokenizer, Limits, Grammars], Asked]
Shape = Callable[[Asked, TextTokenizer, str, Fields], "Answers | responses.Response"]
CLIENT_GONE = 499  # a status that nobody reads; counted


class Service:
    """One model, called ``name``, that answers through ``batcher``, with a ``page`` to look at it by or without one.
    ``stopping`` is set once the server is to end."""

    def __init__(self, batcher: Batcher, name: str, settings: ServeSettings, page: Page | None = None) -> None:
        self.batcher, self.name, self.settings, self.page = batcher, name, settings, page
        self.tokenizer, self.metrics = batcher.tokenizer, Metrics(batcher)
        self.grammars = Grammars(batcher.tokenizer, batcher.engine.spec.vocab_size)
        self.stopping = False
        context, started = batcher.engine.spec.max_seq_len, int(time.time())
        self.limits = Limits(context, settings.max_prompt or context, settings.max_new_tokens or context)
        self._model = {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "sentinel",
            "max_model_len": context,
        }

    def application(self) -> Gate:
        """What an ASGI server runs."""
        routes = [Route(path.path, getattr(self, path.handler), methods=[path.method]) for path in PATHS]
        free = tuple(path.path for path in PATHS if path.open)
        if self.page is not None:
            routes += self.page.routes(self._fields, self.limits, self.grammars, self.metrics, lambda: self.stopping)
            free = (*free, *self.page.free)
        handlers: dict[Any, Any] = {
            ApiError: _api_error,
            InputError: lambda request, error: _api_error(request, ApiError(400, str(error))),
            QueueFullError: lambda request, error: _api_error(request, ApiError(429, str(error))),
            ShuttingDownError: lambda request, error: _api_error(request, ApiError(503, str(error))),
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            ClientGoneError: _gone,
            Exception: lambda request, error: _api_error(
                request, ApiError(500, "the server failed; its log says more")
            ),
        }
        paths = {route.path.partition("{")[0] for route in routes}
        app = Starlette(routes=routes, exception_handlers=handlers)
        return Gate(app, self.settings.api_key, self.metrics, paths, free)

    # --- paths ------------------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """The one model that there is."""
        return JSONResponse({"object": "list", "data": [self._model]})

    async def model(self, request: Request) -> Response:
        """That model by its name."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model)

    async def health(self, request: Request) -> Response:
        """200 as long as requests are taken."""
        if self.stopping:
            raise ApiError(503, "the server shuts down")
        return JSONResponse({"status": "ok"})

    async def figures(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def completions(self, request: Request) -> Response:
        """Texts that go on."""
        return await self._answer(request, requests.completion)

    async def chat(self, request: Request) -> Response:
        """The next message of a chat."""
        return await self._answer(request, requests.chat)

    async def responses(self, request: Request) -> Response:
        """The same in the shape of the responses API; nothing is kept of it."""
        return await self._answer(request, responses.read, responses.Response)

    async def embeddings(self, request: Request) -> Response:
        """Means of the states of texts."""
        fields = await self._fields(request)
        self._check_model(bodies.MODEL.of(fields))
        texts = await asyncio.to_thread(embeddings.read, fields, self.tokenizer, self.limits)
        means: list[NDArray[np.float32]] = []
        for group in texts.groups:
            found = dict[int, NDArray[np.float32]]()
            async with aclosing(Running(self.batcher, self.metrics, group).events(request.receive)) as events:
                async for index, event in events:
                    raise_failed(event)
                    assert event.mean is not None
                    found[index] = event.mean
            means += [found[index] for index in range(len(group))]
        return JSONResponse(await asyncio.to_thread(embeddings.answer, texts, means, self.name))

    async def description(self, request: Request) -> Response:
        """The OpenAPI description of these paths."""
        return JSONResponse(
            described(self.name, self.batcher.engine.spec.vocab_size, self.settings.api_key is not None)
        )

    async def tokenize(self, request: Request) -> Response:
        """Token ids of ``prompt``, or of ``messages`` in the chat template."""
        fields = await self._fields(request)
        read = requests.chat_prompt if bodies.MESSAGES.of(fields) is not None else _prompt
        tokens = await asyncio.to_thread(read, fields, self.tokenizer)
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": self.limits.context})

    async def detokenize(self, request: Request) -> Response:
        """Text of ``tokens``; special tokens are left out."""
        tokens = bodies.TOKENS.of(await self._fields(request))
        largest = self.batcher.engine.spec.vocab_size
        if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < largest for token in tokens):
            raise wrong("tokens", f"a list of token ids below {largest}", tokens)
        return JSONResponse({"prompt": await asyncio.to_thread(self.tokenizer.decode, tokens)})

    # --- steps ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, read: Reader, shape: Shape = Answers) -> Response:
        fields = await self._fields(request)
        self._check_model(bodies.MODEL.of(fields))
        asked = await asyncio.to_thread(read, fields, self.tokenizer, self.limits, self.grammars)
        running = Running(self.batcher, self.metrics, asked.requests)
        answers = shape(asked, self.tokenizer, self.name, fields)
        if asked.stream:
            return EventStream(running, answers)
        async with aclosing(running.events(request.receive)) as events:
            async for index, event in events:
                answers.add(index, event)
        return JSONResponse(answers.whole())

    def _check_model(self, name: str) -> None:
        if name != self.name:
            message = f"there is no model {name!r:.100} here; the one that there is is {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _fields(self, request: Request) -> Fields:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page of another site can send other types without asking
            raise ApiError(415, f"the body must be application/json, not {kind!r:.80}")
        most, body = int(self.settings.max_body_mb * 1e6), bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise ApiError(413, f"the body is larger than {self.settings.max_body_mb:g} MB")
        try:
            fields = Fields(json.loads(bytes(body).decode("utf-8"), parse_float=_number))
            if b"\\u" in body:  # halves of a pair, which no text can hold, may be written so
                json.dumps(fields.body, ensure_ascii=False).encode("utf-8")
            return fields
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not valid JSON ({error})", code="invalid_json") from error


def _number(text: str) -> float | int:
    """A number as JSON has it, where 1.0 is a whole one."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _prompt(fields: Fields, tokenizer: TextTokenizer) -> list[int]:
    prompt = bodies.ONE_PROMPT.of(fields)
    if not isinstance(prompt, str):
        raise wrong(bodies.ONE_PROMPT.name, "a string", prompt)
    return tokenizer.encode(prompt)


def _api_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def _http_error(request: Request, error: HTTPException) -> Response:
    said = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(said.body, error.status_code, error.headers)


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
