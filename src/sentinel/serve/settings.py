"""How a server is run."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sentinel.errors import InputError
from sentinel.infer.batching import CACHE_MB, MAX_BATCH, MAX_QUEUE


@dataclass(frozen=True)
class ServeSettings:
    """Where it listens, who may ask, and how much.

    ``port`` 0 takes a free one. ``max_prompt`` and ``max_new_tokens`` are tokens (None: as the model's context allows);
    ``max_body_mb`` is of a request's body, ``cache_mb`` of keys and values kept of earlier answers. When it is told to
    end, answers have ``grace_s`` seconds to be finished.
    Raises `InputError` for an address that others can reach without ``api_key``.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_batch: int = MAX_BATCH
    max_queue: int = MAX_QUEUE
    cache_mb: float = CACHE_MB
    max_prompt: int | None = None
    max_new_tokens: int | None = None
    max_body_mb: float = 4.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port must be from 0 to 65535, not {self.port}")
        if self.max_body_mb <= 0 or self.grace_s < 0 or self.cache_mb < 0:
            raise InputError("max-body must be above 0, grace and cache at least 0")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise InputError("the API key must be printable ASCII, and not empty")
        if self.api_key is None and not is_loopback(self.host):
            raise InputError(f"{self.host} can be reached from elsewhere; give an --api-key, or leave out --host")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
