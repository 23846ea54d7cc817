"""What a `Batcher` has under way: answers, and the widths of the model at which they are made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sentinel.infer.batch_request import Ticket
from sentinel.infer.engine import Engine, Logits, OpenSequence
from sentinel.infer.prefix_cache import PrefixCache
from sentinel.infer.sampling import Sampler
from sentinel.infer.text_stream import TextStream
from sentinel.models.rotary import turns
from sentinel.models.tokenizer import TextTokenizer

MAX_KEPT = 16


class ServedWidth:
    """An engine at a width, called ``name`` ("" where there is one only), and what it keeps for prompts that begin alike.

    Keys and values belong to the width that they were made at, so that nothing is shared between widths but weights.
    """

    def __init__(self, name: str, engine: Engine, max_batch: int, cache_bytes: int) -> None:
        self.name, self.engine = name, engine
        spare = MAX_KEPT if engine.max_sequences is None else engine.max_sequences - max_batch
        self.cache = PrefixCache(engine, cache_bytes, min(MAX_KEPT, spare))
        self._turns = turns(engine.spec)

    def read(self, answer: Answer, most: int) -> tuple[int, Logits | None]:
        """Read the next piece of an answer's text, of at most ``most`` tokens; its size, and logits [V] after it, None of
        one that is embedded."""
        if answer.sequence is None and not answer.request.embed:
            found = self.cache.begin(answer.history, answer.left)
            if found is not None:
                answer.sequence, answer.n_read = found
        count = min(answer.unread, most)
        if any(answer.n_read < turn < len(answer.history) for turn in self._turns):
            count = answer.unread  # rotary angles turn within it, and it has those of its length: it is read whole
        piece = answer.history[answer.n_read : answer.n_read + count]
        if answer.request.embed:
            answer.add_states(self.engine, piece)
            logits = None
        elif answer.sequence is None:
            answer.sequence, logits = self.engine.open(piece, answer.unread - count + answer.left)
        else:
            logits = self.engine.extend(answer.sequence, piece)
        answer.n_read += count
        return count, logits

    def leave(self, answer: Answer, keep: bool) -> None:
        """End an answer's sequence here; ``keep`` it for prompts that begin alike."""
        if answer.sequence is not None and keep:
            self.cache.keep(answer.sequence, answer.history[: answer.sequence.length])
        elif answer.sequence is not None:
            self.engine.close(answer.sequence)
        answer.sequence, answer.n_read = None, 0


class Answer:
    """A request under way at a width: its text so far, how much of that is read, and how the next token is chosen."""

    def __init__(self, ticket: Ticket, tokenizer: TextTokenizer, width: ServedWidth) -> None:
        self.ticket, self.request, self.width = ticket, ticket.request, width
        self.history = list(self.request.prompt)
        self.n_read = self.n_new = 0
        self.sequence: OpenSequence | None = None
        self._sum: NDArray[np.float64] = np.zeros(1)  # of states [C]
        self.sampler = Sampler(self.request.settings, 1, self.request.constraint)
        self.text = TextStream(tokenizer, self.request.prompt, self.request.stop)

    def add_states(self, engine: Engine, piece: list[int]) -> None:
        """Read a piece of a text that is embedded."""
        if self.sequence is None:
            self.sequence = engine.begin(len(self.history))
        self._sum = self._sum + engine.states(self.sequence, piece).sum(axis=0, dtype=np.float64)

    @property
    def mean(self) -> NDArray[np.float32] | None:
        """The mean of all states [C] of a text that is embedded, once it is read; else None."""
        if not self.request.embed or self.unread:
            return None
        return np.asarray(self._sum / len(self.history), np.float32)

    @property
    def unread(self) -> int:
        """Tokens that are still to be read before the next one is known."""
        return len(self.history) - self.n_read

    @property
    def left(self) -> int:
        """Tokens that it may still get."""
        return self.request.max_new_tokens - self.n_new
