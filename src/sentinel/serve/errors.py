"""What a client is told when its request can't be answered: OpenAI's shape, with the right status."""

from __future__ import annotations

from typing import Any

TYPES = {429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error"}  # by status
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "queue_full",
    500: "server_error",
    503: "shutting_down",
}


class ApiError(Exception):
    """A request that ends with ``status``; ``param`` names the field that is wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or CODES.get(status, "invalid_value")

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of the response: how to identify oneself, or when to come again."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}
