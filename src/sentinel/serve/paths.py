"""The paths of a server: what each is asked by, which body it takes, and what it answers. Routes and description are made
of this table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sentinel.serve import bodies
from sentinel.serve.declared import Declared

JSON, EVENTS, FIGURES = "application/json", "text/event-stream", "text/plain"
_READ = (400, 413, 415)  # statuses of what reads a body
_QUEUED = (*_READ, 404, 429, 503)  # and of what waits for the model


@dataclass(frozen=True)
class ServedPath:
    """A path that `Service` answers by its method ``handler``.

    ``answer`` names a schema of `objects.SCHEMAS`, "" where the answer is of another kind of content. ``errors`` are
    statuses beside 200, 401 and 500. Parameters stand in braces, as Starlette has them. An ``open`` path needs no key:
    whoever watches the process has none.
    """

    path: str
    handler: str
    about: str
    answer: str
    body: Sequence[Declared] = ()
    errors: tuple[int, ...] = ()
    contents: tuple[str, ...] = (JSON,)
    open: bool = False

    @property
    def method(self) -> str:
        """POST where there is a body."""
        return "POST" if self.body else "GET"


PATHS = (
    ServedPath("/v1/models", "models", "the one model that there is", "Models"),
    ServedPath("/v1/models/{name:path}", "model", "that model by its name", "Model", errors=(404,)),
    ServedPath(
        "/v1/completions", "completions", "texts that go on", "Completion", bodies.COMPLETION, _QUEUED, (JSON, EVENTS)
    ),
    ServedPath(
        "/v1/chat/completions",
        "chat",
        "the next message of a chat",
        "ChatCompletion",
        bodies.CHAT,
        _QUEUED,
        (JSON, EVENTS),
    ),
    ServedPath(
        "/v1/responses",
        "responses",
        "the same in the shape of the responses API; nothing is kept of it",
        "Response",
        bodies.RESPONSE,
        _QUEUED,
        (JSON, EVENTS),
    ),
    ServedPath(
        "/v1/embeddings",
        "embeddings",
        "the mean of a text's states after the final norm, at unit length",
        "Embeddings",
        bodies.EMBEDDING,
        _QUEUED,
    ),
    ServedPath("/tokenize", "tokenize", "token ids of a text or a chat", "Tokens", bodies.TOKENIZE, _READ),
    ServedPath("/detokenize", "detokenize", "the text of token ids", "Text", bodies.DETOKENIZE, _READ),
    ServedPath("/health", "health", "200 as long as requests are taken", "Health", errors=(503,), open=True),
    ServedPath("/metrics", "figures", "figures for Prometheus", "", contents=(FIGURES,)),
    ServedPath("/openapi.json", "description", "this description", ""),
)
