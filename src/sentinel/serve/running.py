"""From a batcher's thread to an event loop: the events of one HTTP request, until they end or the client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from sentinel.infer.batch_request import Event, Request
from sentinel.infer.batching import Batcher
from sentinel.serve.answers import Answers
from sentinel.serve.errors import ApiError
from sentinel.serve.metrics import Metrics
from sentinel.serve.responses import Response


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Running:
    """The answers to ``requests``, which have been asked for. Raises what `Batcher.submit` does."""

    def __init__(self, batcher: Batcher, metrics: Metrics, requests: Sequence[Request]) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event] | None]()
        self._left = len(requests)
        self._tickets = batcher.submit_all(
            [(request, metrics.watched(request, self._teller(i))) for i, request in enumerate(requests)]
        )

    def _teller(self, index: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return tell

    def cancel(self) -> None:
        """Call all of it off."""
        for ticket in self._tickets:
            ticket.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancel()  # at once: whoever sends may be held up by a full connection
        self._queue.put_nowait(None)

    async def events(self, receive: Receive) -> AsyncGenerator[tuple[int, Event], None]:
        """Index of the answer, and event. Raises `ClientGoneError`; whatever ends it calls the rest off."""
        watch = asyncio.create_task(self._watch(receive))
        try:
            while self._left:
                item = await self._queue.get()
                if item is None:
                    raise ClientGoneError
                self._left -= item[1].finish is not None
                yield item
        finally:
            watch.cancel()
            self.cancel()


class EventStream(HttpResponse):
    """Server-sent events of a request's answers, with an error at the end where they were broken off."""

    media_type = "text/event-stream"

    def __init__(self, running: Running, answers: Answers | Response) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._running, self._answers = running, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def say(*chunks: Any) -> None:
            data = b"".join(_sent(chunk) for chunk in chunks)
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            async with aclosing(self._running.events(receive)) as events:
                await say(*self._answers.first())
                async for index, event in events:
                    await say(*self._answers.add(index, event))
            await say(*self._answers.last())
        except ApiError as error:
            await say(*self._answers.failed(error))
        except ClientGoneError:
            return
        finally:
            self._running.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _sent(chunk: Any) -> bytes:
    """A chunk as a server-sent event, which is called by its type where it has one."""
    if isinstance(chunk, str):
        return f"data: {chunk}\n\n".encode()
    name = f"event: {chunk['type']}\n" if "type" in chunk else ""
    return f"{name}data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
