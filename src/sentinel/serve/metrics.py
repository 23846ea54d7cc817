"""What Prometheus is told: the queue, the batch, times to tokens, tokens."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sentinel.infer.batch_request import Event, Finish, Request
from sentinel.infer.batching import Batcher

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds
NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = registry = CollectorRegistry()
        waiting = Gauge("sentinel_requests_waiting", "requests that have not begun", registry=registry)
        waiting.set_function(lambda: batcher.n_waiting)
        active = Gauge("sentinel_sequences_active", "answers under way", registry=registry)
        active.set_function(lambda: batcher.n_active)
        limit = Gauge("sentinel_sequences_max", "answers that may be under way at once", registry=registry)
        limit.set(batcher.max_batch)
        cached = Gauge("sentinel_cache_bytes", "keys and values kept of answers that have ended", registry=registry)
        cached.set_function(lambda: sum(cache.n_byte for cache in batcher.caches))
        reused = Gauge("sentinel_prompt_tokens_reused", "tokens of prompts that were not read again", registry=registry)
        reused.set_function(lambda: sum(cache.n_reused for cache in batcher.caches))
        self.responses = Counter(
            "sentinel_http_responses", "responses, by path and status", ["path", "status"], registry=registry
        )
        self._answers = Counter("sentinel_answers", "answers that ended, by reason", ["finish"], registry=registry)
        for finish in Finish:
            self._answers.labels(finish.value)
        self._by_width: Counter | None = None
        if len(batcher.width_names) > 1:
            self._by_width = Counter("sentinel_tokens_by_width", "tokens generated", ["width"], registry=registry)
            in_use = Gauge("sentinel_width_in_use", "1 for the width in force", ["width"], registry=registry)
            for name in batcher.width_names:
                self._by_width.labels(name)
                in_use.labels(name).set_function(lambda name=name: batcher.width == name)
        self._prompt = Counter("sentinel_prompt_tokens", "tokens of prompts that were begun", registry=registry)
        self._generated = Counter("sentinel_generated_tokens", "tokens that were generated", registry=registry)
        self._first = Histogram(
            "sentinel_time_to_first_token_seconds",
            "from the request to its first token",
            buckets=FIRST,
            registry=registry,
        )
        self._next = Histogram(
            "sentinel_time_per_output_token_seconds",
            "mean of an answer, after its first token",
            buckets=NEXT,
            registry=registry,
        )

    def watched(self, request: Request, tell: Callable[[Event], None]) -> Callable[[Event], None]:
        """``tell``, with what it is told counted, also when nobody listens any more."""
        asked = first = last = time.perf_counter()
        count = 0

        def counted(event: Event) -> None:
            nonlocal first, last, count
            if event.token is not None:
                count, last = count + 1, time.perf_counter()
                self._generated.inc()
                if self._by_width is not None:
                    self._by_width.labels(event.width).inc()
                if count == 1:
                    first = last
                    self._prompt.inc(len(request.prompt))
                    self._first.observe(first - asked)
            if event.mean is not None:
                self._prompt.inc(len(request.prompt))
            if event.finish is not None:
                self._answers.labels(event.finish.value).inc()
                if count > 1:
                    self._next.observe((last - first) / (count - 1))
            tell(event)

        return counted

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
