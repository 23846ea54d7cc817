"""What the page has open, and one run of a prompt: the dialled model's text, the unpruned one's, and how far they agree."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive

from sentinel.infer.batch_request import Event, Finish, QueueFullError
from sentinel.infer.batching import Batcher
from sentinel.infer.engine import Ability, Engine, warm_up
from sentinel.models.tokenizer import TextTokenizer
from sentinel.serve.answers import raise_failed
from sentinel.serve.errors import ApiError
from sentinel.serve.metrics import Metrics
from sentinel.serve.page.engines import Dial, Engines
from sentinel.serve.requests import Asked
from sentinel.serve.running import Running

Said = dict[str, Any]
MOST_WAITING = 16  # runs
MOST_KEPT = 32  # texts of the unpruned model
MOST_JUDGED = 256  # tokens, each of which takes logits of the whole vocabulary
LOOK_S = 0.002


@dataclass
class Text:
    """What a model has said to a prompt so far, and how fast: tokens/s after the first token, None before the second."""

    engine: str = ""
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    memory_mb: float = 0.0
    read_mb: float = 0.0
    finish: str | None = None
    first: float = 0.0
    last: float = 0.0

    def add(self, event: Event) -> None:
        """One event of a batcher."""
        self.text += event.text
        if event.token is not None:
            self.tokens.append(event.token)
            self.last = time.perf_counter()
            self.first = self.first or self.last
        if event.finish is not None:
            self.finish = event.finish.value

    def cost(self, engine: Engine) -> None:
        """Note what the engine holds, and what it reads for a token."""
        held = engine.memory()
        self.memory_mb = (held.weights + held.kv + (held.work or 0)) / 1e6
        self.read_mb = engine.weight_bytes_per_token() / 1e6

    @property
    def tokens_per_s(self) -> float | None:
        span = self.last - self.first
        return (len(self.tokens) - 1) / span if len(self.tokens) > 1 and span > 0 else None

    def figures(self) -> Said:
        """Without the text."""
        return {
            "engine": self.engine,
            "tokens": len(self.tokens),
            "tokens_per_s": self.tokens_per_s,
            "memory_mb": round(self.memory_mb, 1),
            "read_mb": round(self.read_mb, 1),
            "finish": self.finish,
        }


@dataclass(frozen=True)
class _Opened:
    """An engine at a dial, with the batcher that runs it."""

    dial: Dial
    engine: Engine
    batcher: Batcher


class Studio:
    """Runs prompts by a model at any dial, one after the other, so that a speed is that of a run alone on the page.

    It has the unpruned model open, and the dial that was asked for last. `close` ends what runs; it is a context manager.
    """

    def __init__(self, engines: Engines, tokenizer: TextTokenizer) -> None:
        self.engines, self.tokenizer = engines, tokenizer
        self._unpruned: _Opened | None = None
        self._chosen: _Opened | None = None
        self._kept: OrderedDict[tuple[tuple[int, ...], int], Text] = OrderedDict()  # by prompt and new tokens
        self._turn = asyncio.Lock()
        self._n_waiting = 0

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs, and give back memory and threads."""
        for opened in (self._unpruned, self._chosen):
            if opened is not None:
                _close(opened)
        self._unpruned = self._chosen = None

    def check_room(self) -> None:
        """Raise `QueueFullError` where too many runs wait."""
        if self._n_waiting >= MOST_WAITING:
            raise QueueFullError(f"{self._n_waiting} runs wait; ask again later")

    async def run(
        self, asked: Asked, dial: Dial, metrics: Metrics, stopping: Callable[[], bool], receive: Receive
    ) -> AsyncGenerator[Said, None]:
        """Events of one run, as the page reads them by their ``kind``. Raises `ApiError`, or `ClientGoneError`.

        ``wait`` (``for`` what), ``start`` and ``text`` (of a ``side``: chosen, unpruned, or both where they are one; with
        `Text.figures`; ``anew`` for the whole text, which was known), and at last ``agreement`` (see there).
        """
        self._n_waiting += 1
        if self._turn.locked():
            yield {"kind": "wait", "for": "another run"}
        try:
            await self._turn.acquire()
        finally:
            self._n_waiting -= 1
        try:
            async with aclosing(self._run(asked, dial, metrics, stopping, receive)) as events:
                async for event in events:
                    yield event
        finally:
            self._turn.release()

    async def _run(
        self, asked: Asked, dial: Dial, metrics: Metrics, stopping: Callable[[], bool], receive: Receive
    ) -> AsyncGenerator[Said, None]:
        (request,) = asked.requests
        key, plain = (tuple(request.prompt), request.max_new_tokens), self.engines.unpruned
        said: Text | None = None
        unpruned = self._kept.get(key)
        if unpruned is not None:
            yield _whole("both" if dial == plain else "unpruned", unpruned)
        if dial != plain:  # first: it is what was asked for
            said = Text()
            async with aclosing(self._said(said, "chosen", asked, dial, metrics, stopping, receive)) as events:
                async for event in events:
                    yield event
        if unpruned is None:
            unpruned, side = Text(), "unpruned" if said else "both"
            async with aclosing(self._said(unpruned, side, asked, plain, metrics, stopping, receive)) as events:
                async for event in events:
                    yield event
            self._keep(key, unpruned)
        yield {"kind": "agreement", **await self._agreement(request.prompt, dial, unpruned, said or unpruned)}

    async def _said(
        self,
        text: Text,
        side: str,
        asked: Asked,
        dial: Dial,
        metrics: Metrics,
        stopping: Callable[[], bool],
        receive: Receive,
    ) -> AsyncGenerator[Said, None]:
        """Fill ``text`` with what the model says at that dial, and tell of each token."""
        if not self._is_open(dial):
            yield {"kind": "wait", "for": f"level {dial.level} {dial.precision}"}
        opened = await self._open(dial)
        text.engine = opened.engine.name
        text.cost(opened.engine)
        yield {"kind": "start", "side": side, **text.figures()}
        try:
            async with aclosing(Running(opened.batcher, metrics, asked.requests).events(receive)) as events:
                async for _, event in events:
                    _check_going(event, stopping())
                    text.add(event)
                    if event.finish is not None:
                        text.cost(opened.engine)
                    yield {"kind": "text", "side": side, "text": event.text, **text.figures()}
        finally:
            await _rest(opened.batcher)

    def _keep(self, key: tuple[tuple[int, ...], int], text: Text) -> None:
        self._kept[key] = text
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    async def _agreement(self, prompt: Sequence[int], dial: Dial, unpruned: Text, said: Text) -> Said:
        """Share of the unpruned model's tokens that the dialled one chooses too after the unpruned one's own words, and
        how many tokens the two texts begin with alike; the share is None where the engine can't tell."""
        pairs = list(zip(unpruned.tokens, said.tokens, strict=False))
        same = next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))
        judged, share = unpruned.tokens[:MOST_JUDGED], None
        if said is unpruned:
            share = 1.0
        elif Ability.SCORE in (engine := (await self._open(dial)).engine).supports:
            logits = await asyncio.to_thread(engine.score, [*prompt, *judged[:-1]], len(judged))
            share = float((logits.argmax(axis=1) == judged).mean())
        return {"share": share, "of": len(judged), "same": same}

    def _is_open(self, dial: Dial) -> bool:
        return any(opened is not None and opened.dial == dial for opened in (self._unpruned, self._chosen))

    async def _open(self, dial: Dial) -> _Opened:
        """The dial's engine; what was dialled before is closed for it."""
        if dial == self.engines.unpruned:
            self._unpruned = self._unpruned or await asyncio.to_thread(self._made, dial)
            return self._unpruned
        if self._chosen is None or self._chosen.dial != dial:
            if self._chosen is not None:
                await asyncio.to_thread(_close, self._chosen)
                self._chosen = None
            self._chosen = await asyncio.to_thread(self._made, dial)
        return self._chosen

    def _made(self, dial: Dial) -> _Opened:
        engine = self.engines.engine(dial)
        warm_up(engine)
        return _Opened(dial, engine, Batcher(engine, self.tokenizer, max_batch=1, max_queue=1, cache_mb=0))


def _whole(side: str, text: Text) -> Said:
    """A text that is known already, in one event."""
    return {"kind": "text", "side": side, "text": text.text, "anew": True, **text.figures()}


def _check_going(event: Event, stopping: bool) -> None:
    raise_failed(event)
    if stopping or event.finish is Finish.CANCELLED:
        raise ApiError(503, "the server shuts down")


async def _rest(batcher: Batcher) -> None:
    """Wait until the engine is free: an answer that was called off ends with its next token."""
    while not batcher.idle:
        await asyncio.sleep(LOOK_S)


def _close(opened: _Opened) -> None:
    opened.batcher.close()
    opened.engine.release()
