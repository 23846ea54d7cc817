"""Prompt lookup: guess the next tokens from what the text has said before (Saxena 2023, "Prompt lookup decoding").

The longest n-gram at the end of the text that occurred before proposes what followed it there.
"""

from __future__ import annotations

from collections.abc import Iterable

from sentinel.infer.sampling import Sampler
from sentinel.infer.speculation import MOST, Proposer

NGRAMS = (4, 3, 2)  # sizes that are looked up, longest first


class PromptLookup(Proposer):
    """Proposes what followed the same words before."""

    name = "lookup"

    def __init__(self, most: int = MOST) -> None:
        super().__init__(most)
        self._after: dict[tuple[int, ...], int] = {}  # an n-gram -> where the token stood that followed it last

    def extend(self, tokens: Iterable[int]) -> None:
        """Tell more of the text."""
        for token in tokens:
            for n in NGRAMS:
                if len(self.text) >= n:
                    self._after[tuple(self.text[-n:])] = len(self.text)
            self.text.append(token)

    def close(self) -> None:
        """Nothing is held: another text that begins is the continuation of this one."""

    def _guess(self, most: int, sampler: Sampler | None) -> list[int]:
        for n in NGRAMS:
            start = self._after.get(tuple(self.text[-n:])) if len(self.text) >= n else None
            if start is not None:
                period = len(self.text) - start  # beyond the end of the text, it goes on as the loop that it is
                return [self.text[start + i % period] for i in range(most)]
        return []
