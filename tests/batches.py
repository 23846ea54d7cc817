"""What tests of batches share: prompts, and how to ask and hear."""

from __future__ import annotations

import time

import numpy as np

from sentinel.infer.batch_request import Event, Events, Request
from sentinel.infer.batching import Batcher
from sentinel.infer.generate import generate_tokens

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, 97, size).tolist() for size in (1, 30, 3, 17, 9, 2, 40, 5, 23, 11)]
HANG = 120  # seconds after which a test would wait for ever


def alone(engine, request: Request) -> list[int]:
    steps = generate_tokens(engine, [request.prompt], request.max_new_tokens, request.settings, request.eos_ids)
    return [token for (token,) in steps if token is not None]


def heard(events: Events) -> tuple[list[int], str, Event]:
    """Tokens, text and the last event."""
    found = list(events)
    return [e.token for e in found if e.token is not None], "".join(e.text for e in found), found[-1]


def ask(batcher: Batcher, request: Request) -> Events:
    events = Events()
    batcher.submit(request, events.tell)
    return events


def until(true) -> None:
    end = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)
