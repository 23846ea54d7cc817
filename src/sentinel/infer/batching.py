"""Continuous batching: many requests share one engine, and each may come and go between any two tokens.

One thread runs rounds. A round reads a piece of the prompts that wait, in turn, and then gives one token to every answer
under way, so that a long prompt holds nobody up for longer than a piece takes (`PieceRule`). What an answer says does not
depend on the others: an engine runs every sequence as if it were alone (`Engine`), and each draws from a random stream of
its own.

With `Shedding` there are several widths of the model. A rule says which of them is in force; an answer begins at that one.
One that is under way at another goes over to it when no prompt is being read: its text is read again there, in pieces as
a prompt is. Its next tokens are those that an engine of the new width gives after this text. A pass is of one width.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

import numpy as np

from sentinel.errors import InputError
from sentinel.infer.batch_answer import Answer, ServedWidth
from sentinel.infer.batch_request import Event, Finish, QueueFullError, Request, ShuttingDownError, Ticket
from sentinel.infer.engine import Engine, Logits
from sentinel.infer.pieces import PieceRule
from sentinel.infer.prefix_cache import PrefixCache
from sentinel.infer.sampling import token_chance
from sentinel.infer.shedding import Shedding
from sentinel.models.tokenizer import TextTokenizer

PIECE = 128  # tokens of prompts that are read between two steps at most; one pass of the native engine
MAX_BATCH = 16
MAX_QUEUE = 64
CACHE_MB = 256  # of keys and values of answers that have ended
PAYS = 4  # tokens that are read again for one that is made at another width; more of them do not pay


class Batcher:
    """Answers requests together, up to ``max_batch`` at once, while up to ``max_queue`` wait in the order they came.

    Up to ``cache_mb`` of keys and values of answers that have ended are kept, for prompts that begin alike; with
    ``shedding`` each width has its share.

    Raises `InputError` for a batch that the engine can't hold. `close` ends it; it is a context manager too.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TextTokenizer,
        *,
        max_batch: int = MAX_BATCH,
        max_queue: int = MAX_QUEUE,
        cache_mb: float = CACHE_MB,
        shedding: Shedding | None = None,
    ) -> None:
        if max_batch < 1 or max_queue < 1:
            raise InputError(f"batch and queue must be at least 1, not {max_batch} and {max_queue}")
        if engine.max_sequences is not None and max_batch > engine.max_sequences:
            raise InputError(f"{engine.name} takes at most {engine.max_sequences} sequences at once, not {max_batch}")
        self.engine, self.tokenizer = engine, tokenizer
        self.max_batch, self.max_queue = max_batch, max_queue
        engines = {"": engine} if shedding is None else {shedding.name: engine, **shedding.narrower}
        share = int(cache_mb * 1e6 / len(engines))
        self._widths = [ServedWidth(name, its, max_batch, share) for name, its in engines.items()]
        self._width = self._widths[0]  # in force
        self._rule = None if shedding is None else shedding.rule()
        self._waiting: deque[Ticket] = deque()
        self._reading: deque[Answer] = deque()
        self._decoding: list[Answer] = []
        self._pieces = PieceRule()
        self._changed = threading.Condition()  # guards what waits, and the flags
        self._refusing = self._closing = False
        self._thread = threading.Thread(target=self._work, name="sentinel-batcher", daemon=True)
        self._thread.start()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- for other threads ------------------------------------------------------------------------------------------

    def submit(self, request: Request, tell: Callable[[Event], None]) -> Ticket:
        """Take a request; ``tell`` hears of every token, in the batcher's thread, the last time with a ``finish``.

        Raises `InputError` for a prompt that the model can't take, `QueueFullError`, or `ShuttingDownError`.
        """
        return self.submit_all([(request, tell)])[0]

    def submit_all(self, asked: list[tuple[Request, Callable[[Event], None]]]) -> list[Ticket]:
        """`submit` of several requests, all of them or none."""
        for request, _ in asked:
            request.check(self.engine.spec)
        tickets = [Ticket(request, tell) for request, tell in asked]
        with self._changed:
            if self._refusing:
                raise ShuttingDownError("no more requests are taken, the server shuts down")
            if len(self._waiting) + len(tickets) > self.max_queue:
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait, of at most {self.max_queue}; ask again later"
                )
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    @property
    def caches(self) -> list[PrefixCache]:
        """What is kept for prompts that begin alike, of each width."""
        return [width.cache for width in self._widths]

    @property
    def width_names(self) -> list[str]:
        """Names of the widths that there are, the widest first; without shedding there is one, without a name."""
        return [width.name for width in self._widths]

    @property
    def width(self) -> str:
        """The width in force."""
        return self._width.name

    @property
    def n_waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def n_active(self) -> int:
        """Requests under way: their sequences are open."""
        return len(self._reading) + len(self._decoding)

    @property
    def idle(self) -> bool:
        """True when nothing is asked for any more."""
        with self._changed:
            return not (self._waiting or self.n_active)

    def refuse(self) -> None:
        """Take no more requests; those that were taken are answered."""
        with self._changed:
            self._refusing = True

    def close(self) -> None:
        """End at once: what is under way or waits finishes with `Finish.SHUTDOWN` within one token."""
        with self._changed:
            self._refusing = self._closing = True
            self._changed.notify()
        self._thread.join()

    # --- the worker -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self.n_active)
                if self._closing:
                    break
            try:
                self._round()
            except Exception as error:  # noqa: BLE001  (whoever waits must hear of it, and others come after)
                traceback.print_exc()
                self._clear()
                self._end_all(Finish.ERROR, f"the engine failed ({error})")
        self._end_all(Finish.SHUTDOWN, "the server shuts down")
        self._clear()
        for ticket in self._waiting:
            _tell(ticket, Event(finish=Finish.SHUTDOWN, message="the server shuts down"))
        self._waiting.clear()

    def _clear(self) -> None:
        for cache in self.caches:
            cache.clear()

    def _round(self) -> None:
        began = time.perf_counter()
        self._drop_cancelled()
        self._choose_width()
        self._admit()
        self._move()
        answering = bool(self._decoding)
        started = time.perf_counter()
        n_read = self._read(self._pieces.size(PIECE, answering=answering))
        read = time.perf_counter()
        decoding = list(self._decoding)
        for width in self._widths:
            if answers := [answer for answer in decoding if answer.width is width]:
                self._step(width, answers)
        if answering and n_read and decoding:
            self._pieces.saw(n_read, read - started, time.perf_counter() - read, PIECE)
        if decoding and self._rule is not None:
            self._rule.saw_round(time.perf_counter() - began)

    def _step(self, width: ServedWidth, answers: list[Answer]) -> None:
        sequences = [answer.sequence for answer in answers if answer.sequence is not None]
        logits = width.engine.step(sequences, [answer.history[-1] for answer in answers])
        for row, answer in enumerate(answers):
            self._take(answer, logits[row])

    def _choose_width(self) -> None:
        if self._rule is not None:
            with self._changed:
                oldest = self._waiting[0].asked if self._waiting else None
            waited = 0.0 if oldest is None else time.perf_counter() - oldest
            self._width = self._widths[self._rule.look(waited, self.n_active)]

    def _move(self) -> None:
        """Let an answer of another width go over to the one in force: one at a time, and prompts go first."""
        if not self._reading:
            found = (a for a in self._decoding if a.width is not self._width and a.left >= len(a.history) / PAYS)
            answer = next(found, None)
            if answer is not None:
                answer.width.leave(answer, keep=True)
                answer.width = self._width
                self._reading.append(answer)  # first, so that it is never in neither place
                self._decoding.remove(answer)

    def _drop_cancelled(self) -> None:
        for answer in [a for a in (*self._reading, *self._decoding) if a.ticket.cancelled]:
            self._finish(answer, Event(finish=Finish.CANCELLED))
        with self._changed:
            gone = [ticket for ticket in self._waiting if ticket.cancelled]
            for ticket in gone:
                self._waiting.remove(ticket)
        for ticket in gone:
            _tell(ticket, Event(finish=Finish.CANCELLED))

    def _admit(self) -> None:
        while self.n_active < self.max_batch:
            with self._changed:  # never in neither place: `idle` looks at both
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
                # Embeddings of two widths can't be compared: they are the widest one's whatever the load.
                width = self._widths[0] if ticket.request.embed else self._width
                self._reading.append(Answer(ticket, self.tokenizer, width))

    def _read(self, most: int) -> int:
        """Pieces of prompts, in turn, of ``most`` tokens together, and the first token of those that are read; how many
        tokens that were."""
        left = most
        while left > 0 and self._reading:
            answer = self._reading[0]
            try:
                count, logits = answer.width.read(answer, left)
            except (InputError, MemoryError) as error:  # of this one alone
                self._finish(answer, Event(finish=Finish.ERROR, message=f"{error}" or "there is not enough memory"))
                continue
            left -= count
            if answer.mean is not None:
                self._finish(answer, Event(finish=Finish.STOP, mean=answer.mean))
                continue
            self._reading.rotate(-1)
            if logits is not None and not answer.unread:
                self._decoding.append(answer)  # first, so that it is never in neither place
                self._reading.pop()
                self._take(answer, logits)
        return most - left

    def _take(self, answer: Answer, logits: Logits) -> None:
        """Choose the next token of an answer, and tell of it."""
        if answer.ticket.cancelled:
            return
        request, width = answer.request, answer.width.name
        try:
            (token,) = answer.sampler(logits[np.newaxis], [answer.history])
        except InputError as error:  # of this one alone
            self._finish(answer, Event(finish=Finish.ERROR, message=str(error)))
            return
        chance = None if request.n_likeliest is None else token_chance(logits, token, request.n_likeliest)
        answer.history.append(token)
        answer.n_new += 1
        if token in request.eos_ids:
            self._finish(answer, Event(answer.text.end(), token, chance, Finish.STOP, width=width))
            return
        piece = answer.text.push(token)
        if answer.text.stopped:
            self._finish(answer, Event(piece, token, chance, Finish.STOP, width=width))
        elif answer.n_new == request.max_new_tokens:
            self._finish(answer, Event(piece + answer.text.end(), token, chance, Finish.LENGTH, width=width))
        else:
            _tell(answer.ticket, Event(piece, token, chance, width=width))

    def _finish(self, answer: Answer, event: Event) -> None:
        """Free an answer's place, then tell of its end."""
        ended_well = event.finish in (Finish.STOP, Finish.LENGTH, Finish.CANCELLED)
        answer.width.leave(answer, keep=ended_well and not answer.request.embed)
        for place in (self._reading, self._decoding):
            if answer in place:
                place.remove(answer)
        _tell(answer.ticket, event)

    def _end_all(self, finish: Finish, message: str) -> None:
        for answer in [*self._reading, *self._decoding]:
            self._finish(answer, Event(finish=finish, message=message))


def _tell(ticket: Ticket, event: Event) -> None:
    try:
        ticket.tell(event)
    except RuntimeError:  # its event loop is gone: nobody listens
        ticket.cancel()
