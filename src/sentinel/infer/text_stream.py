"""Tokens to text as they come: pieces that will not change any more, and an end at stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from sentinel.errors import InputError
from sentinel.models.tokenizer import TextTokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 4  # tokens before the new ones that decide about a leading space
MOST_BYTES = 4  # of a character in UTF-8
MOST_NEW = 32  # tokens that are decoded again with each that comes; more of them would make long texts slow


def check_stop(stop: Sequence[str]) -> None:
    """Raise `InputError` for an empty stop string."""
    if any(not text for text in stop):
        raise InputError("a stop string is empty; leave it out")


class TextStream:
    """The text behind ``prompt`` (token ids), token by token. ``stopped`` turns True at a string of ``stop``, before which
    the text ends."""

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        check_stop(stop)
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._begin(prompt)
        self.stopped = False

    def push(self, token: int) -> str:
        """What is certain with one token more; often nothing."""
        self._new.append(token)
        text = self._text()
        found = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return text[self._told : min(found)]
        safe = len(text) - self._held_back(text)
        piece = text[self._told : safe]
        self._told = max(self._told, safe)
        if len(self._new) >= MOST_NEW and self._told == len(text):
            self._begin([*self._context, *self._new])
        return piece

    def end(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.stopped else self._text()[self._told :]

    def _begin(self, before: Sequence[int]) -> None:
        self._context = _context(self._tokenizer, before)
        self._known = len(self._tokenizer.decode(self._context))
        self._new: list[int] = []
        self._told = 0

    def _text(self) -> str:
        """Text of the new tokens after that of the tokens before."""
        return self._tokenizer.decode([*self._context, *self._new])[self._known :]

    def _held_back(self, text: str) -> int:
        """Characters at the end that may still change: an unfinished character, or the beginning of a stop string."""
        held = len(text) - len(text.rstrip(REPLACEMENT))
        for string in self._stop:
            for size in range(min(len(string) - 1, len(text)), held, -1):
                if text.endswith(string[:size]):
                    held = size
                    break
        return held


def _context(tokenizer: TextTokenizer, tokens: Sequence[int]) -> Sequence[int]:
    """The last tokens of a text, which decide about a leading space. They begin with a whole character: behind half of
    one, a tokenizer that falls back to bytes takes all bytes that follow for none."""
    sizes = range(CONTEXT, CONTEXT + MOST_BYTES)
    found = (tokens[-size:] for size in sizes)
    whole = (some for some in found if not tokenizer.decode(some).startswith(REPLACEMENT))
    return next(whole, tokens[-CONTEXT:])
