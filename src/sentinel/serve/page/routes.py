"""The page's paths: its files, which anybody may read, and what it asks of the model, for which a key is needed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sentinel.errors import InputError
from sentinel.infer.grammar import Grammars
from sentinel.infer.levels import check_level
from sentinel.models.tokenizer import TextTokenizer
from sentinel.plain import is_list
from sentinel.serve import requests
from sentinel.serve.errors import ApiError
from sentinel.serve.fields import Fields, wrong
from sentinel.serve.metrics import Metrics
from sentinel.serve.page.engines import MASKING, WHOLE, Dial
from sentinel.serve.page.frontier import Frontier
from sentinel.serve.page.studio import Said, Studio
from sentinel.serve.requests import Asked, Limits
from sentinel.serve.running import ClientGoneError

ASSETS = Path(__file__).parent / "assets"
SHARED = Path(__file__).parents[2] / "report" / "templates"  # looks like the report
CHARTS = "/page/charts.js"
FILES = {
    "/": ASSETS / "page.html",
    "/page/page.css": ASSETS / "page.css",
    "/page/page.js": ASSETS / "page.js",
    "/page/controls.js": ASSETS / "controls.js",
    "/page/map.js": ASSETS / "map.js",
    "/page/frontier.js": ASSETS / "frontier.js",
    "/page/colours.css": SHARED / "colours.css",
    "/page/chart_style.js": SHARED / "chart_style.js",
}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
LONGEST = 512  # new tokens of a run


class Page:
    """The page of one model: ``name``, what `Studio` runs, the ``dial`` at first, and a report's ``frontier``."""

    free = (*FILES, CHARTS)  # paths that hold nothing of the model

    def __init__(self, studio: Studio, name: str, dial: Dial, frontier: Frontier | None) -> None:
        self._studio, self._name, self._dial, self._frontier = studio, name, dial, frontier

    def routes(
        self,
        fields: Callable[[Request], Awaitable[Fields]],
        limits: Limits,
        grammars: Grammars,
        metrics: Metrics,
        stopping: Callable[[], bool],
    ) -> list[Route]:
        """Its paths in a server that reads bodies by ``fields`` and forms by ``grammars``, counts in ``metrics`` and tells
        if it is ``stopping``."""

        async def model(request: Request) -> Response:
            return JSONResponse(self._about(limits))

        async def run(request: Request) -> Response:
            body = await fields(request)
            dial = dial_of(body)
            self._studio.engines.check(dial)
            asked = await asyncio.to_thread(asked_of, body, self._studio.tokenizer, limits, grammars)
            self._studio.check_room()
            return EventLines(lambda receive: self._studio.run(asked, dial, metrics, stopping, receive))

        return [
            *(Route(path, _file(file), methods=["GET"]) for path, file in FILES.items()),
            Route(CHARTS, _charts, methods=["GET"]),
            Route("/page/model", model, methods=["GET"]),
            Route("/page/run", run, methods=["POST"]),
        ]

    def _about(self, limits: Limits) -> dict[str, Any]:
        engines = self._studio.engines
        return {
            "name": self._name,
            "levels": [{**vars(check_level(level)), **_level(Dial(level, name))} for level, name in engines.levels],
            "widths": [
                {"heads": heads, "neurons": neurons, "kept": engines.heads((heads, neurons))}
                for heads, neurons in engines.widths
            ],
            "n_head": engines.heads(WHOLE),
            "masking": MASKING if any(level == MASKING for level, _ in engines.levels) else None,
            "unpruned": _level(engines.unpruned),
            "start": {**_level(self._dial), "heads": self._dial.ratios[0], "neurons": self._dial.ratios[1]},
            "chat": self._studio.tokenizer.chat_template is not None,
            "longest": min(LONGEST, limits.new, limits.context - 1),
            "charts": importlib.util.find_spec("vl_convert") is not None,
            "frontier": None if self._frontier is None else self._frontier.body,
        }


def _level(dial: Dial) -> dict[str, Any]:
    return {"level": dial.level, "precision": dial.precision}


def dial_of(fields: Fields) -> Dial:
    """What the page asks to run the model by. Raises `ApiError` for fields of another kind."""
    level = fields.whole("level", None, 0, 3)
    if level is None:
        raise wrong("level", "a whole number", None)
    masked = fields.get("masked") or []
    if not is_list(masked) or not all(is_list(one) and [type(n) for n in one] == [int, int] for one in masked):
        raise wrong("masked", "a list of pairs of layer and head", masked)
    ratios = tuple(round(fields.number(name, 0.0, 0, 1), 4) for name in ("heads", "neurons"))
    return Dial(level, fields.text("precision"), (ratios[0], ratios[1]), frozenset((one[0], one[1]) for one in masked))


def asked_of(fields: Fields, tokenizer: TextTokenizer, limits: Limits, grammars: Grammars) -> Asked:
    """One greedy answer to ``prompt``: asked through the chat template with ``chat``, else continued."""
    prompt, longest = fields.text("prompt"), min(LONGEST, limits.new)
    body: dict[str, Any] = {"max_tokens": fields.whole("max_tokens", 64, 1, longest), "temperature": 0}
    if fields.flag("chat"):
        messages = [{"role": "user", "content": prompt}]
        return requests.chat(Fields({**body, "messages": messages}), tokenizer, limits, grammars)
    return requests.completion(Fields({**body, "prompt": prompt}), tokenizer, limits, grammars)


class EventLines(Response):
    """Server-sent events of ``make``, each a JSON object; an error is told as the last of them."""

    media_type = "text/event-stream"

    def __init__(self, make: Callable[[Receive], AsyncGenerator[Said, None]]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def say(event: Said) -> None:
            data = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
            await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

        try:
            async with aclosing(self._make(receive)) as events:
                async for event in events:
                    await say(event)
            await say({"kind": "done"})
        except (ApiError, InputError) as error:
            await say({"kind": "error", "message": str(error)})
        except ClientGoneError:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    content, kind = path.read_bytes(), KINDS[path.suffix]

    async def found(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return found


async def _charts(request: Request) -> Response:
    """The charts of the report, made once; they need the extra ``full``."""
    if importlib.util.find_spec("vl_convert") is None:
        raise ApiError(404, "charts need the extra full: pip install 'sentinel-ai[full]'")
    from sentinel.report.charts import javascript

    return Response(await asyncio.to_thread(javascript), headers=HEADERS, media_type=KINDS[".js"])
