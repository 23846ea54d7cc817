"""What every request goes through: its id, the key, and the count of what became of it."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sentinel.serve.errors import ApiError
from sentinel.serve.metrics import Metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Gate:
    """Lets a request through to ``app`` if it brings ``api_key`` (None: always), or asks for a path of ``free``. ``paths``
    are counted by name."""

    def __init__(
        self,
        app: ASGIApp,
        api_key: str | None,
        metrics: Metrics,
        paths: Collection[str],
        free: Collection[str],
    ) -> None:
        self._app, self._key, self._metrics, self._paths, self._free = app, api_key, metrics, paths, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        given = headers.get("x-request-id", "")
        number = given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        known = path if path in self._paths else "other"

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = number
                self._metrics.responses.labels(known, str(message["status"])).inc()
            await send(message)

        if path not in self._free and not self._allowed(headers.get("authorization", "")):
            error = ApiError(401, "the API key is missing or wrong; send it as Authorization: Bearer KEY")
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_named)
            return
        await self._app(scope, receive, send_named)

    def _allowed(self, header: str) -> bool:
        kind, _, key = header.partition(" ")
        if self._key is None:
            return True
        return kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key.encode())
