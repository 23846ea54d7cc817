"""A chat with a model: messages, and an open sequence that has read most of them already."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sentinel.errors import InputError
from sentinel.infer.engine import Engine, Logits, OpenSequence
from sentinel.infer.sampling import Sampler, SamplingSettings
from sentinel.infer.text_stream import TextStream
from sentinel.models.rotary import turns
from sentinel.models.tokenizer import TextTokenizer

PIECE = 128  # tokens of a prompt between two looks whether to stop
ROOM = 2048  # tokens that a sequence has room for at first; it is opened anew for more


@dataclass
class Turn:
    """What an answer took: tokens of its prompt, those that were read anew, those said, and seconds to each of them."""

    n_prompt: int = 0
    n_read: int = 0
    stamps: list[float] = field(default_factory=list)
    stopped: bool = False
    left_out: int = 0  # messages that the context had no room for

    @property
    def tokens_per_s(self) -> float:
        """Tokens over the whole time."""
        return len(self.stamps) / self.stamps[-1] if self.stamps else 0.0


class Conversation:
    """Messages so far, and what answers them. Raises `InputError` for a model without a chat template."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, system: str | None = None) -> None:
        if tokenizer.chat_template is None:
            raise InputError("the model has no chat template; continue a text by sentinel generate")
        self.tokenizer, self.system = tokenizer, system
        self.settings, self.max_new_tokens = SamplingSettings(), 1024
        self.turn = Turn()
        self._engine = engine
        self._sequence: OpenSequence | None = None
        self._held: list[int] = []  # tokens that the sequence has read
        self._turns = turns(engine.spec)
        self.reset()

    @property
    def engine(self) -> Engine:
        """What runs the model."""
        return self._engine

    def run_by(self, engine: Engine) -> None:
        """Go on with another engine of the model; the one before is released."""
        self._forget()
        self._engine.release()
        self._engine, self._turns = engine, turns(engine.spec)

    def reset(self) -> None:
        """Begin anew."""
        self.messages: list[dict[str, str]] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})

    def reply(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Pieces of the answer to ``text``, until it ends or ``stopped``; what was said by then is kept.

        Raises `InputError` for a text that is beyond the model's context; it is not kept then.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        self.turn = Turn()
        try:
            for piece in self._answer(stopped):
                said.append(piece)
                yield piece
        except InputError:
            self.messages = before
            raise
        self.messages.append({"role": "assistant", "content": "".join(said)})

    def _answer(self, stopped: Callable[[], bool]) -> Iterator[str]:
        start, turn = time.perf_counter(), self.turn
        history = self._prompt()
        turn.n_prompt = len(history)
        stream, sampler = TextStream(self.tokenizer, history), Sampler(self.settings, 1)
        logits = self._read(history, stopped)
        count = min(self.max_new_tokens, self._engine.spec.max_seq_len - len(history))
        while logits is not None and not stopped():
            (token,) = sampler(logits[np.newaxis], [history])
            turn.stamps.append(time.perf_counter() - start)
            if token in self.tokenizer.eos_ids:
                yield stream.end()
                return
            history.append(token)
            yield stream.push(token)
            if len(turn.stamps) == count:
                break
            logits = self._next(history, stopped)
        turn.stopped = stopped()
        yield stream.end()

    def _prompt(self) -> list[int]:
        """Tokens of the messages; the oldest are left out where they are beyond the context."""
        while True:
            tokens = self.tokenizer.apply_chat(self.messages)
            if len(tokens) < self._engine.spec.max_seq_len:
                return tokens
            first = 1 if self.messages[0]["role"] == "system" else 0
            if len(self.messages) - first < 3:
                raise InputError(f"{len(tokens)} tokens are beyond the context of {self._engine.spec.max_seq_len}")
            del self.messages[first : first + 2]
            self.turn.left_out += 2

    def _read(self, tokens: Sequence[int], stopped: Callable[[], bool]) -> Logits | None:
        """Logits [V] after ``tokens``, of which only what the sequence does not hold yet is read; None once ``stopped``."""
        sequence = self._going_on(tokens)
        logits = None
        while len(self._held) < len(tokens):
            at = len(self._held)
            whole = any(at < turn < len(tokens) for turn in self._turns)  # all of it has the angles of its length
            piece = tokens[at:] if whole else tokens[at : at + PIECE]
            if sequence is None:
                most = self._engine.spec.max_seq_len
                limit = min(most, max(ROOM, 2 * len(tokens)))
                sequence, logits = self._engine.open(piece, limit - len(piece))
                self._sequence = sequence
            else:
                logits = self._engine.extend(sequence, piece)
            self._held += piece
            self.turn.n_read += len(piece)
            if stopped() and len(self._held) < len(tokens):
                return None
        return logits

    def _next(self, tokens: list[int], stopped: Callable[[], bool]) -> Logits | None:
        """Logits [V] after the last of ``tokens``, which alone is new."""
        sequence = self._sequence
        if sequence is None or sequence.length == sequence.limit:
            self._forget()  # read anew, with more room
            return self._read(tokens, stopped)
        self._held.append(tokens[-1])
        return self._engine.step([sequence], tokens[-1:])[0]

    def _going_on(self, tokens: Sequence[int]) -> OpenSequence | None:
        """The sequence, rolled back to what it has in common with ``tokens``; None where it is of no use."""
        sequence = self._sequence
        pairs = enumerate(zip(self._held, tokens, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(self._held), len(tokens)))
        same = min(same, len(tokens) - 1)  # the last one is read again: its logits are wanted
        turned = any(turn < max(len(tokens), len(self._held)) for turn in self._turns)
        if (
            sequence is None
            or same < 1
            or turned
            or not self._engine.is_open(sequence)
            or len(tokens) >= sequence.limit
        ):
            self._forget()
            return None
        try:
            self._engine.roll_back(sequence, len(self._held) - same)
        except InputError:  # windows have moved on
            self._forget()
            return None
        del self._held[same:]
        return sequence

    def _forget(self) -> None:
        if self._sequence is not None:
            self._engine.close(self._sequence)
        self._sequence, self._held = None, []
