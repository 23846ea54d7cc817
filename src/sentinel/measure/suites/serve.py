"""``sentinel serve`` under load, over HTTP on loopback, by a client of our own; and the servers of others beside it.

A server is a process of its own, with its usual settings. Clients ask for greedy answers to prompts of real text, each as
soon as it has its last answer. No answer is waited for longer than a minute.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.text.corpora import load_texts, sample_windows
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.measure.results import Result
from sentinel.measure.serving.client import Heard
from sentinel.measure.serving.load import Load, LoadOn, percentiles_of
from sentinel.measure.serving.peers import PEER_SERVERS
from sentinel.measure.serving.servers import RunningServer, ServerCommand, our_server
from sentinel.measure.suites.request import Request
from sentinel.progress import say, working

N_PROMPT = 64
PREFIX, ENTERING = 800, 1000  # tokens
SHED = 0.5  # of heads and neurons
OVERLOAD = 2.0  # times the requests that were answered at the most clients
SOAKED = 8  # prompts of the soak
BESIDE = 400  # tokens of the stream beside a long prompt


@dataclass(frozen=True)
class Texts:
    """Prompts, and texts of `PREFIX` and `ENTERING` tokens; each is used once, so that nothing is kept of it."""

    prompts: list[str]
    prefixes: list[str]
    entering: list[str]


def run(request: Request) -> list[Result]:
    """Rows per number of clients for our server and those of others that can be run, and one for each other part."""
    settings = request.settings
    request.require_cpu("servers are measured")
    request.loaded.require_tokenizer()
    texts = _texts(request)
    rows: list[Result] = []
    for precision in settings.precision:
        server = our_server(request.source, request.random_weights, precision, request.engines.threads)
        one = _Part(request, server, texts, 2 if precision == "fp32" else 3)
        with working("Starting the server"), RunningServer(server) as running:
            on = LoadOn(running, texts.prompts, settings.new_tokens)
            own = [one.clients(on, count) for count in settings.clients]
            rows += [*own, one.soak(running), *one.prefix(on), *one.entering(on)]
        rate = max(row.tokens_per_s or 0.0 for row in own) / settings.new_tokens
        rows += one.overload(OVERLOAD * rate)
    return [*rows, *_peers(request, texts)]


def _texts(request: Request) -> Texts:
    settings, tokenizer = request.settings, request.loaded.require_tokenizer()
    request.check_context(max(PREFIX + settings.prompt, ENTERING + 1))
    corpora = load_texts(settings.text, "test")

    def some(count: int, length: int, seed: int) -> list[str]:
        windows = sample_windows(corpora, tokenizer, count * length, length, seed).tokens.tolist()
        return [tokenizer.decode(window) for window in windows]

    rounds = settings.rounds
    return Texts(some(N_PROMPT, settings.prompt, 0), some(rounds, PREFIX, 1), some(rounds, ENTERING, 2))


class _Part:
    """Rows of one server; ``level`` is of ours."""

    def __init__(self, request: Request, server: ServerCommand, texts: Texts, level: int | None = None) -> None:
        self._request, self._texts, self._level = request, texts, level
        self._engine, self._precision = server.name, server.precision

    def clients(self, on: LoadOn, count: int) -> Result:
        say(f"{self._engine}: {count} clients")
        return self._row("clients", count, on.clients(count, self._request.settings.seconds))

    def soak(self, running: RunningServer) -> Result:
        settings, count = self._request.settings, max(self._request.settings.clients)
        say(f"{self._engine}: soak, {settings.soak:g} s")
        on = LoadOn(running, self._texts.prompts[:SOAKED], settings.new_tokens)
        load, growth = on.soak(count, settings.soak)
        return replace(self._row("soak", count, load), memory_growth=growth)

    def prefix(self, on: LoadOn) -> list[Result]:
        """The first request with a long prefix, and the second one."""
        tails = [" One more.", " And another."]
        pairs = [on.twice(prefix, tails) for prefix in self._texts.prefixes]
        first = self._row("prefix: first", 1, Load([a for a, _ in pairs], 0.0), PREFIX, 2)
        second = self._row("prefix: second", 1, Load([b for _, b in pairs], 0.0), PREFIX, 2)
        return [first, _over(second, first, "ttft_ms", "p50")]

    def entering(self, on: LoadOn) -> list[Result]:
        """Tokens of a stream, alone and while a long prompt is read."""
        alone: list[float] = []
        beside: list[float] = []
        others: list[Heard] = []
        for prompt, entering in zip(self._texts.prompts, self._texts.entering, strict=False):
            quiet, loud, other = on.beside(prompt, entering, BESIDE)
            alone, beside, others = [*alone, *quiet], [*beside, *loud], [*others, other]
        rows = []
        for phase, gaps in (("stream alone", alone), ("stream beside a prompt", beside)):
            row = self._described(phase, 1, self._request.settings.prompt, BESIDE)
            found = {"tpot_ms": percentiles_of(gaps)}
            if phase != "stream alone":
                found["ttft_ms"] = percentiles_of([one.ttft_ms for one in others if one.ended_well])
            samples = [{"tpot_ms": gap} for gap in gaps]
            middle = found["tpot_ms"].get("p50")
            rows.append(replace(row, percentiles=found, samples=samples, tpot_ms=middle, errors=0))
        return [rows[0], _over(rows[1], rows[0], "tpot_ms", "p95")]

    def overload(self, rate: float) -> list[Result]:
        """More requests than can be answered, without and with a narrower width to go down to."""
        request = self._request
        if not request.loaded.spec.n_head_total:
            say("shedding is left out: the model has no heads to remove")
            return []
        rows = []
        with tempfile.TemporaryDirectory(prefix="sentinel-serve-") as scratch:
            folder = _elastic(request, Path(scratch) / "elastic")
            for phase, more in (("overload", ()), ("overload, shedding", ("--shed", f"{SHED:g}/{SHED:g}"))):
                server = our_server(str(folder), None, self._precision, request.engines.threads, *more)
                say(f"{self._engine}: {phase}, {rate:.1f} requests a second")
                with RunningServer(server) as running:
                    on = LoadOn(running, self._texts.prompts, request.settings.new_tokens)
                    on.clients(1, 1.0)  # what is done at first use
                    rows.append(self._row(phase, None, on.overload(rate, request.settings.seconds)))
        return [rows[0], _over(rows[1], rows[0], "ttft_ms", "p95")]

    def _described(self, phase: str, count: int | None, prompt: int, new: int) -> Result:
        loaded = self._request.loaded
        return Result(
            suite="serve",
            model=loaded.name,
            weights=loaded.weights,
            engine=self._engine,
            level=self._level,
            precision=self._precision,
            phase=phase,
            batch=count,
            prompt_tokens=prompt,
            new_tokens=new,
        )

    def _row(
        self, phase: str, count: int | None, load: Load, prompt: int | None = None, new: int | None = None
    ) -> Result:
        settings = self._request.settings
        row = self._described(phase, count, prompt or settings.prompt, new or settings.new_tokens)
        return with_load(row, load)


def with_load(row: Result, load: Load) -> Result:
    """``row`` with what was heard."""
    first = [one.ttft_ms for one in load.good]
    next_ones = [tpot for one in load.good if (tpot := one.tpot_ms) is not None]
    found = {"ttft_ms": percentiles_of(first), "tpot_ms": percentiles_of(next_ones)}
    return replace(
        row,
        tokens_per_s=load.tokens_per_s or None,
        ttft_ms=found["ttft_ms"].get("p50"),
        tpot_ms=found["tpot_ms"].get("p50"),
        errors=load.n_error,
        refused=load.n_refused,
        samples=[{"ttft_ms": value} for value in first],
        percentiles=found,
    )


def _over(row: Result, reference: Result, key: str, percentile: str) -> Result:
    """``row`` with a percentile of it over that of another row."""
    own, other = (one.percentiles.get(key, {}).get(percentile) for one in (row, reference))
    if not own or not other:
        return row
    label = f"{key.removesuffix('_ms').upper()} {percentile} over {reference.phase}"
    return replace(row, share=own / other, share_of=label)


def _elastic(request: Request, folder: Path) -> Path:
    """The model with a stored width without half of its heads and neurons; in random order, which is right for speed."""
    decoder = request.loaded.decoder
    pruner = Pruner(decoder, PruningSettings("random", compensate=False), None)
    order = pruner.order(SHED, SHED)
    plan = order.plan(SHED, SHED)
    made = make_elastic(decoder, order, [plan], pruner.apply([plan]))
    save_checkpoint(made, folder, request.loaded.tokenizer, request.loaded.record)
    return folder


def _peers(request: Request, texts: Texts) -> list[Result]:
    """Rows of the servers of others, in turn; those that can't be run are named."""
    loaded, settings = request.loaded, request.settings
    threads = request.engines.threads or torch.get_num_threads()
    rows: list[Result] = []
    for make in PEER_SERVERS:
        with tempfile.TemporaryDirectory(prefix="sentinel-peers-") as scratch:
            try:
                server = make(loaded.decoder, loaded.require_tokenizer(), Path(scratch), threads)
                with working(f"Starting {server.name}"), RunningServer(server) as running:
                    on, one = LoadOn(running, texts.prompts, settings.new_tokens), _Part(request, server, texts)
                    on.clients(1, 1.0)  # what is done at first use
                    rows += [one.clients(on, count) for count in settings.clients]
            except InputError as error:
                say(str(error))
    return rows
