"""``/v1/embeddings``: the mean of a text's states after the final norm, at unit length."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentinel.infer.batch_request import Request
from sentinel.models.tokenizer import TextTokenizer
from sentinel.serve import bodies
from sentinel.serve.errors import ApiError
from sentinel.serve.fields import Fields, wrong
from sentinel.serve.requests import Limits, texts_of

AT_ONCE = 8  # texts of one request that wait together, so that many of them do not fill the queue


@dataclass(frozen=True)
class Texts:
    """What one request asks for: an embedding of each of ``requests``, in ``base64`` or as numbers."""

    requests: list[Request]
    base64: bool

    @property
    def groups(self) -> list[list[Request]]:
        """The requests, as many together as are asked at once."""
        return [self.requests[start : start + AT_ONCE] for start in range(0, len(self.requests), AT_ONCE)]


def read(fields: Fields, tokenizer: TextTokenizer, limits: Limits) -> Texts:
    """A request to ``/v1/embeddings``. Raises `ApiError`."""
    encoding = bodies.ENCODING.of(fields)
    if encoding not in (None, *bodies.ENCODINGS):
        raise wrong(bodies.ENCODING.name, " or ".join(bodies.ENCODINGS), encoding)
    if bodies.DIMENSIONS.of(fields) is not None:
        message = "dimensions is not supported: an embedding is as wide as the model; leave it out"
        raise ApiError(400, message, param="dimensions", code="unsupported_parameter")
    found = texts_of(bodies.TEXTS, fields, tokenizer)
    if len(found) > bodies.MOST_TEXTS:
        raise ApiError(400, f"input holds {len(found)} texts, at most {bodies.MOST_TEXTS} are taken", param="input")
    most = min(limits.context, limits.prompt)
    for number, tokens in enumerate(found):
        place = "input" if len(found) == 1 else f"input[{number}]"
        if not tokens:
            raise ApiError(400, f"{place} is empty; give some text", param="input")
        if len(tokens) > most:
            message = f"{place} has {len(tokens)} tokens, at most {most} are taken"
            raise ApiError(400, message, param="input", code="context_length_exceeded")
    return Texts([Request(tokens, 1, embed=True) for tokens in found], encoding == "base64")


def answer(texts: Texts, means: Sequence[NDArray[np.float32]], model: str) -> dict[str, Any]:
    """The response: the ``means`` [C] of the texts at unit length."""
    said = [_coded(_unit(mean), texts.base64) for mean in means]
    data = [{"object": "embedding", "index": number, "embedding": one} for number, one in enumerate(said)]
    n_token = sum(len(request.prompt) for request in texts.requests)
    usage = {"prompt_tokens": n_token, "total_tokens": n_token}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / (length or 1.0), np.float32)


def _coded(vector: NDArray[np.float32], as_base64: bool) -> str | list[float]:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()
