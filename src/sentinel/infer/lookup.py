"""Prompt lookup: guess the next tokens from what the text has said before, and verify them in one pass.

The longest n-gram at the end of the text that occurred before proposes what followed it there (Saxena 2023, "Prompt
lookup decoding"; the verification is that of Leviathan et al. 2023 for a proposal that is certain of itself). The next
token is drawn as ever, from the model's own distribution; a proposal is right when it is that very token, which happens
with the probability p(x) that the model gives it, and otherwise the drawn token has the distribution of p without x. So
the tokens are those of plain decoding with the same seed, up to the rounding of a pass of several tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from sentinel.infer.engine import Engine, OpenSequence
from sentinel.infer.sampling import Sampler

NGRAMS = (4, 3, 2)  # sizes that are looked up, longest first
MOST = 7  # proposed tokens at most: with the one before them the largest tile of the native engine
_FORGET = 0.9  # weight of the past in the running estimates
_TRIALS = 4  # verified passes before an estimate counts
_FIRST_PAUSE = 16  # plain tokens after the first time that lookup did not pay; doubled each time


class PromptLookup:
    """Proposals for one sequence, and whether they pay; ``passes``, ``proposed`` and ``accepted`` count."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.passes = self.proposed = self.accepted = self.pauses = 0
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # an n-gram -> where the token stood that followed it last
        self._plain, self._verified = _Rate(), _Rate()
        self._resume_at = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Tell more of the text."""
        for token in tokens:
            for n in NGRAMS:
                if len(self._tokens) >= n:
                    self._after[tuple(self._tokens[-n:])] = len(self._tokens)
            self._tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Up to ``most`` next tokens; none if nothing was found, or while it does not pay."""
        most = min(most, self.most)
        if most < 1 or not self._plain.count or len(self._tokens) < self._resume_at:
            return []
        for n in NGRAMS:
            start = self._after.get(tuple(self._tokens[-n:])) if len(self._tokens) >= n else None
            if start is not None:
                period = len(self._tokens) - start  # beyond the end of the text, it goes on as the loop that it is
                return [self._tokens[start + i % period] for i in range(most)]
        return []

    def plain_step(self, seconds: float) -> None:
        """A token was decoded without a proposal."""
        self._plain.add(seconds, 1)

    def verified_step(self, seconds: float, proposed: int, accepted: int) -> None:
        """A pass verified ``proposed`` tokens; with the token after the ``accepted`` ones it gave one more."""
        self.passes += 1
        self.proposed += proposed
        self.accepted += accepted
        self._verified.add(seconds, accepted + 1)
        if self._verified.count >= _TRIALS and self._verified.per_token > self._plain.per_token:
            self._resume_at = len(self._tokens) + _FIRST_PAUSE * 2**self.pauses
            self.pauses += 1
            self._verified = _Rate()


class _Rate:
    """Seconds per token, of late."""

    def __init__(self) -> None:
        self.count = 0
        self._seconds = self._tokens = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        self.count += 1
        self._seconds = self._seconds * _FORGET + seconds
        self._tokens = self._tokens * _FORGET + tokens

    @property
    def per_token(self) -> float:
        return self._seconds / self._tokens


def lookup_steps(
    engine: Engine,
    sequence: OpenSequence,
    sampler: Sampler,
    history: list[int],
    first: int,
    count: int,
    lookup: PromptLookup,
) -> Iterator[int]:
    """Yield ``count`` tokens that follow ``history``, which ``sequence`` has read, and ``first``, which it has not."""
    lookup.extend([*history, first])
    text = [*history, first]
    while count > 0:
        proposal = lookup.propose(count - 1)
        start = time.perf_counter()
        logits = engine.verify(sequence, [text[-1], *proposal]) if proposal else engine.step([sequence], text[-1:])
        seconds = time.perf_counter() - start
        found: list[int] = []
        for i, expected in enumerate([*proposal, None]):
            (token,) = sampler(logits[i : i + 1], [[*text, *found]])
            found.append(token)
            if token != expected:
                break
        lookup.extend(found)
        if proposal:
            engine.roll_back(sequence, len(proposal) + 1 - len(found))
            lookup.verified_step(seconds, len(proposal), len(found) - 1)
        else:
            lookup.plain_step(seconds)
        for token in found:
            text.append(token)
            yield token
        count -= len(found)
