"""Proposals of the next tokens, verified in one pass of several tokens: the text stays what it is, by fewer passes.

The verification is that of Leviathan et al. 2023 ("Fast inference from transformers via speculative decoding") for
proposals that are certain of themselves: every token is drawn as ever, from the model's own distribution, and a proposal
counts only when it is that very token. So the tokens are those of plain decoding with the same seed, up to the rounding of
a pass of several tokens. Shape letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from sentinel.infer.engine import Engine, OpenSequence
from sentinel.infer.sampling import Sampler

MOST = 7  # proposed tokens at most: with the one before them the largest tile of the native engine
FORGET = 0.9  # weight of the past in the running estimates
_TRIALS = 4  # verified passes before an estimate counts
_FIRST_PAUSE = 16  # plain tokens after the first time that proposals did not pay; doubled each time


class Rate:
    """Seconds per token, of late."""

    def __init__(self) -> None:
        self.count = 0
        self._seconds = self._tokens = 0.0

    def add(self, seconds: float, tokens: float) -> None:
        """``tokens`` took ``seconds``."""
        self.count += 1
        self._seconds = self._seconds * FORGET + seconds
        self._tokens = self._tokens * FORGET + tokens

    @property
    def per_token(self) -> float:
        """Seconds."""
        return self._seconds / self._tokens


class Proposer(ABC):
    """Proposes the next tokens of one sequence, as long as that pays; ``passes``, ``proposed``, ``accepted`` and ``pauses``
    count.

    Proposals pause while verified passes cost more per token than plain ones do, each time for twice as long.
    """

    name = "proposals"

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.passes = self.proposed = self.accepted = self.pauses = 0
        self.text: list[int] = []
        self.plain, self.verified = Rate(), Rate()
        self._resume_at = 0

    def begin(self, text: Sequence[int], count: int) -> None:
        """Start with a text that ``count`` more tokens will follow at most."""
        self.extend(text)

    def extend(self, tokens: Iterable[int]) -> None:
        """Tell more of the text."""
        self.text.extend(tokens)

    def propose(self, most: int, sampler: Sampler | None = None) -> list[int]:
        """Up to ``most`` next tokens; none if there is no good guess, or while it does not pay.

        ``sampler`` is the one that will draw them; it is not changed.
        """
        most = min(most, self.most)
        if most < 1 or not self.plain.count or len(self.text) < self._resume_at:
            return []
        return self._guess(most, sampler)

    @abstractmethod
    def _guess(self, most: int, sampler: Sampler | None) -> list[int]:
        """From 0 to ``most`` tokens that may follow ``text``."""

    def plain_step(self, seconds: float) -> None:
        """A token was decoded without a proposal."""
        self.plain.add(seconds, 1)

    def verified_step(self, seconds: float, proposed: int, accepted: int) -> None:
        """Verifying ``proposed`` tokens took so long; with the token after the ``accepted`` ones it gave one more."""
        self.passes += 1
        self.proposed += proposed
        self.accepted += accepted
        self.verified.add(seconds, accepted + 1)
        if self.verified.count >= _TRIALS and self.verified.per_token > self.plain.per_token:
            self._resume_at = len(self.text) + _FIRST_PAUSE * 2**self.pauses
            self.pauses += 1
            self.verified = Rate()

    @abstractmethod
    def close(self) -> None:
        """Give back what was held for the text, which has ended."""

    @property
    def report(self) -> str:
        """What came of it, in one sentence."""
        paused = f"; it did not pay, and paused {self.pauses} times" if self.pauses else ""
        right = f"{self.accepted} of {self.proposed} proposed tokens were right"
        return f"{self.name}: {right}, in {self.passes} passes{paused}"


def speculative_steps(
    engine: Engine,
    sequence: OpenSequence,
    sampler: Sampler,
    text: Sequence[int],
    count: int,
    proposer: Proposer,
) -> Iterator[int]:
    """Yield ``count`` tokens that follow ``text``, of which ``sequence`` has read all but the last."""
    text = list(text)
    proposer.begin(text, count)
    while count > 0:
        proposal = proposer.propose(count - 1, sampler)
        start = time.perf_counter()
        logits = engine.verify(sequence, [text[-1], *proposal]) if proposal else engine.step([sequence], text[-1:])
        seconds = time.perf_counter() - start
        found: list[int] = []
        for i, expected in enumerate([*proposal, None]):
            (token,) = sampler(logits[i : i + 1], [[*text, *found]])
            found.append(token)
            if token != expected:
                break
        proposer.extend(found)
        if proposal:
            engine.roll_back(sequence, len(proposal) + 1 - len(found))
            proposer.verified_step(seconds, len(proposal), len(found) - 1)
        else:
            proposer.plain_step(seconds)
        for token in found:
            text.append(token)
            yield token
        count -= len(found)
