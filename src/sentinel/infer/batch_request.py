"""What is asked of a `Batcher`, and what it tells: requests, events, and tickets by which an answer is called off."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.infer.grammar import Constraint
from sentinel.infer.sampling import SamplingSettings, TokenChance
from sentinel.infer.text_stream import check_stop
from sentinel.infer.token_checks import check_prompts, check_room, check_tokens
from sentinel.models.spec import ModelSpec


class QueueFullError(RuntimeError):
    """As many requests wait as may; ask again later."""


class ShuttingDownError(RuntimeError):
    """No more requests are taken."""


class Finish(Enum):
    """Why an answer ended."""

    STOP = "stop"  # a token that ends the text, or a stop string
    LENGTH = "length"  # as many tokens as were asked for
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    ERROR = "error"


@dataclass(frozen=True)
class Request:
    """A prompt (token ids), and how to go on: ``max_new_tokens`` at most, up to a token of ``eos_ids``, before a string of
    ``stop``. ``n_likeliest`` asks for the chance of each token, and for so many of the likeliest; None for nothing.
    ``constraint`` says which tokens may come (`Grammars.begin`). With ``embed`` there is no answer: the prompt is
    read, at the widest width, and its states are told."""

    prompt: Sequence[int]
    max_new_tokens: int
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    eos_ids: Sequence[int] = ()
    stop: Sequence[str] = ()
    n_likeliest: int | None = None
    constraint: Constraint | None = None
    embed: bool = False

    def check(self, spec: ModelSpec) -> None:
        """Refuse what a model ``spec`` can't answer; `InputError`."""
        if self.embed:
            check_room(spec, len(self.prompt))
            check_tokens(spec, self.prompt)
            return
        check_prompts(spec, [self.prompt], self.max_new_tokens)
        check_stop(self.stop)
        for token, _ in self.settings.logit_bias:
            if token >= spec.vocab_size:
                raise InputError(f"logit bias names token {token} of {spec.vocab_size}")


@dataclass(frozen=True)
class Event:
    """One token more, or an end. ``text`` is certain with it, often empty; ``chance`` is there where it was asked for.

    ``token`` is None where an answer ends without another token; ``message`` says what went wrong.
    ``width`` is the one that the token was made at, "" where there is one only. ``mean`` [C], of a text that was to be
    embedded, is the mean of its tokens' states after the final norm.
    """

    text: str = ""
    token: int | None = None
    chance: TokenChance | None = None
    finish: Finish | None = None
    message: str = ""
    width: str = ""
    mean: NDArray[np.float32] | None = None


class Ticket:
    """A request that was taken. ``tell`` is called with each `Event`, in the batcher's thread, and must not wait."""

    def __init__(self, request: Request, tell: Callable[[Event], None]) -> None:
        self.request, self.tell = request, tell
        self.cancelled = False
        self.asked = time.perf_counter()

    def cancel(self) -> None:
        """Call the answer off: not one token more is begun. It ends with `Finish.CANCELLED`, unless it has ended."""
        self.cancelled = True


class Events:
    """The events of one request for a thread that waits: ``tell`` is its ticket's."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.tell = self._queue.put

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._queue.get()
            yield event
            if event.finish is not None:
                return
