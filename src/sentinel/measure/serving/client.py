"""One streamed request over HTTP, with a time stamp for every piece of the answer. No more of HTTP than that takes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

LONGEST_S = 60.0  # that an answer may take
EVENT = b"data: "


@dataclass
class Heard:
    """An answer as it was heard: ``stamps`` are seconds from the request to each piece of text, ``began`` is when that was
    (`time.perf_counter`). ``status`` is 0 and ``error`` says why where there was none."""

    began: float = 0.0
    status: int = 0
    stamps: list[float] = field(default_factory=list)
    text: str = ""
    n_token: int = 0
    error: str = ""

    @property
    def ended_well(self) -> bool:
        """True when the answer came to its end."""
        return self.status == 200 and not self.error and bool(self.stamps)

    @property
    def ttft_ms(self) -> float:
        """Milliseconds to the first piece."""
        return self.stamps[0] * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Milliseconds per token after the first; None of one token."""
        if self.n_token < 2 or len(self.stamps) < 2:
            return None
        return (self.stamps[-1] - self.stamps[0]) / (self.n_token - 1) * 1e3

    def tokens_until(self, moment: float) -> float:
        """Tokens that had come by ``moment``."""
        come = sum(self.began + stamp <= moment for stamp in self.stamps)
        return self.n_token * come / len(self.stamps) if self.stamps else 0.0


async def ask(host: str, port: int, path: str, body: Mapping[str, Any], on_piece: Any = None) -> Heard:
    """Post ``body`` with ``stream`` set, and hear the answer; ``on_piece`` is called with each stamp. Never raises for what
    a server does."""
    heard = Heard(time.perf_counter())
    try:
        await asyncio.wait_for(_hear(heard, host, port, path, {**body, "stream": True}, on_piece), LONGEST_S)
    except asyncio.TimeoutError:
        heard.error = f"no end within {LONGEST_S:g} s"
    except (OSError, EOFError, ValueError) as error:
        heard.error = f"{error}" or type(error).__name__
    return heard


async def _hear(heard: Heard, host: str, port: int, path: str, body: Mapping[str, Any], on_piece: Any) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        heard.status = int((await reader.readline()).split()[1])
        chunked = False
        while (line := (await reader.readline()).strip().lower()) != b"":
            chunked |= line.startswith(b"transfer-encoding:") and b"chunked" in line
        if heard.status != 200:
            return
        async with aclosing(_lines(reader, chunked)) as lines:
            async for line in lines:
                if line.startswith(EVENT) and not line.startswith(b"data: [DONE]"):
                    _take(heard, json.loads(line[len(EVENT) :]), on_piece)
        heard.n_token = heard.n_token or len(heard.stamps)
    finally:
        writer.close()


async def _lines(reader: asyncio.StreamReader, chunked: bool) -> AsyncGenerator[bytes, None]:
    """Lines of a body, in chunks or up to its end."""
    left = b""
    while True:
        if chunked:
            size = int((await reader.readline()).split(b";")[0] or b"0", 16)
            piece = await reader.readexactly(size)
            await reader.readline()
        else:
            piece = await reader.read(65536)
        if not piece:
            return
        *whole, left = (left + piece).split(b"\n")
        for line in whole:
            yield line


def _take(heard: Heard, chunk: dict[str, Any], on_piece: Any) -> None:
    if "error" in chunk:
        heard.error = str(chunk["error"])
    if chunk.get("usage"):
        heard.n_token = chunk["usage"]["completion_tokens"]
    for choice in chunk.get("choices", ()):
        text = choice.get("text") or choice.get("delta", {}).get("content") or ""
        if text:
            heard.text += text
            heard.stamps.append(time.perf_counter() - heard.began)
            if on_piece is not None:
                on_piece(heard.stamps[-1])
