"""What a server does under load: clients that ask again and again, a soak, a prefix twice, a long prompt beside a stream,
and more requests than it can answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from sentinel.measure.serving.client import Heard, ask
from sentinel.measure.serving.servers import HOST, RunningServer

LOOK_S = 0.5  # between two looks at the memory
SETTLED_S = 10.0  # after which memory should be flat; of a shorter soak, its first half
BEFORE = 5  # a stream has given one token of so many before a long prompt enters beside it
T = TypeVar("T")


@dataclass(frozen=True)
class Load:
    """Answers that were heard, tokens per second meanwhile, and how many texts were not those that they had to be."""

    heard: list[Heard]
    tokens_per_s: float
    n_wrong: int = 0

    @property
    def good(self) -> list[Heard]:
        """Those that came to their end."""
        return [one for one in self.heard if one.ended_well]

    @property
    def n_refused(self) -> int:
        """Those that were told to come again later."""
        return sum(one.status == 429 for one in self.heard)

    @property
    def n_error(self) -> int:
        """Those that failed otherwise, or said something wrong."""
        return sum(not one.ended_well and one.status != 429 for one in self.heard) + self.n_wrong


class LoadOn:
    """Asks one server for greedy answers of ``new_tokens`` to ``prompts``."""

    def __init__(self, server: RunningServer, prompts: Sequence[str], new_tokens: int) -> None:
        self._server, self._prompts, self._new_tokens = server, prompts, new_tokens

    async def one(self, prompt: str, new_tokens: int | None = None, on_piece: Any = None) -> Heard:
        """The answer to one prompt."""
        command = self._server.server
        body = command.body(prompt, self._new_tokens if new_tokens is None else new_tokens)
        return await ask(HOST, self._server.port, command.path, body, on_piece)

    def clients(self, n_client: int, seconds: float) -> Load:
        """So many clients, each with one request after another, for that long; the last ones are heard to their end."""
        return _run(self._clients(n_client, seconds, itertools.cycle(self._prompts)))

    async def _clients(self, n_client: int, seconds: float, prompts: itertools.cycle[str]) -> Load:
        heard: list[Heard] = []
        start = time.perf_counter()
        latest = start + seconds

        async def client() -> None:
            while time.perf_counter() < latest:
                heard.append(await self.one(next(prompts)))
                if not heard[-1].ended_well:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(client() for _ in range(n_client)))
        return Load(heard, sum(one.tokens_until(latest) for one in heard) / seconds)

    def soak(self, n_client: int, seconds: float) -> tuple[Load, float]:
        """As `clients`, with the texts that differ from those of each prompt alone counted; and the growth of the memory
        from `SETTLED_S` on, as a share."""
        alone = {prompt: _run(self.one(prompt)).text for prompt in self._prompts}
        memory: list[tuple[float, float]] = []

        async def both() -> Load:
            looking = asyncio.create_task(self._look(memory))
            try:
                return await self._soaked(n_client, seconds, alone)
            finally:
                looking.cancel()

        load = _run(both())
        settled = min(SETTLED_S, seconds / 2)
        flat = [size for when, size in memory if when >= settled]
        return load, max(flat) / flat[0] - 1

    async def _soaked(self, n_client: int, seconds: float, alone: dict[str, str]) -> Load:
        wrong = 0
        heard: list[Heard] = []
        latest = time.perf_counter() + seconds

        async def client(number: int) -> None:
            nonlocal wrong
            for turn in itertools.count(number):
                if time.perf_counter() >= latest:
                    return
                prompt = self._prompts[turn % len(self._prompts)]
                found = await self.one(prompt)
                heard.append(found)
                wrong += found.ended_well and found.text != alone[prompt]

        await asyncio.gather(*(client(number) for number in range(n_client)))
        return Load(heard, sum(one.tokens_until(latest) for one in heard) / seconds, wrong)

    async def _look(self, memory: list[tuple[float, float]]) -> None:
        start = time.perf_counter()
        while True:
            memory.append((time.perf_counter() - start, self._server.memory_mb()))
            await asyncio.sleep(LOOK_S)

    def twice(self, prefix: str, tails: Sequence[str]) -> tuple[Heard, Heard]:
        """Two requests one after the other that begin with ``prefix``."""
        first, second = (_run(self.one(prefix + tail, 2)) for tail in tails)
        return first, second

    def beside(self, prompt: str, entering: str, new_tokens: int) -> tuple[list[float], list[float], Heard]:
        """Milliseconds between the tokens of a stream, alone and while the prompt ``entering`` is read; and its answer."""
        return _run(self._beside(prompt, entering, new_tokens))

    async def _beside(self, prompt: str, entering: str, new_tokens: int) -> tuple[list[float], list[float], Heard]:
        there = asyncio.Event()
        count = 0

        def piece(_: float) -> None:
            nonlocal count
            count += 1
            if count == max(1, new_tokens // BEFORE):
                there.set()

        stream = asyncio.create_task(self.one(prompt, new_tokens, piece))
        waiting = asyncio.create_task(there.wait())
        await asyncio.wait((stream, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        other = await self.one(entering, 1)
        running = await stream
        stamps = [running.began + stamp for stamp in running.stamps]
        gaps = [(end, (end - start) * 1e3) for start, end in itertools.pairwise(stamps)]
        last = other.began + (other.stamps[0] if other.stamps else 0.0)
        beside = [gap for end, gap in gaps if other.began <= end <= last]
        return [gap for end, gap in gaps if not other.began <= end <= last], beside, other

    def overload(self, rate: float, seconds: float, seed: int = 0) -> Load:
        """So many requests a second whatever is answered, with times between them that chance draws (exponential)."""
        return _run(self._overload(rate, seconds, seed))

    async def _overload(self, rate: float, seconds: float, seed: int) -> Load:
        random = np.random.default_rng(seed)
        tasks: list[asyncio.Task[Heard]] = []
        start = time.perf_counter()
        at, prompts = 0.0, itertools.cycle(self._prompts)
        while (at := at + random.exponential(1 / rate)) < seconds:
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            tasks.append(asyncio.create_task(self.one(next(prompts))))
        heard = list(await asyncio.gather(*tasks))
        return Load(heard, sum(one.tokens_until(start + seconds) for one in heard) / seconds)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def percentiles_of(values: Sequence[float]) -> dict[str, float]:
    """p50 and p95."""
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 95)} if values else {}
