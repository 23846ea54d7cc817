"""Drafts: a cheaper engine of the same model (a quantised copy, or a stored width) proposes the next tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sentinel.infer.engine import Engine, Logits, OpenSequence
from sentinel.infer.sampling import Sampler
from sentinel.infer.speculation import FORGET, MOST, Proposer, Rate

_START = 4  # tokens of the first drafts, before anything is known
_PER_TOKEN = 0.05  # what a further token adds to a pass, in plain steps, before it was measured
_PRIOR = 4.0  # proposals that stand for what is assumed of acceptance, 3 of 4, before any was made


class Draft(Proposer):
    """Proposes what ``engine`` says next, drawn as the tokens will be: by a copy of their sampler, from the same random
    numbers.

    How many tokens are proposed follows what has been accepted so far: with acceptance a, k tokens yield (1 - a^(k+1)) /
    (1 - a) (Leviathan et al. 2023, eq. 1), and cost k steps of the draft and a pass of k + 1 tokens, as measured.
    """

    def __init__(self, engine: Engine, most: int = MOST) -> None:
        super().__init__(most)
        self.name = f"draft by {engine.name}"
        self._engine = engine
        self._limit = 0
        self._sequence: OpenSequence | None = None
        self._read: list[int] = []  # by the draft's sequence
        self._settled = 0  # of them, tokens that are certain
        self._drafted = Rate()
        self._drafting = 0.0  # seconds that the last proposal took
        self._passes: dict[int, Rate] = {}  # that verify, by how many tokens were proposed
        self._right, self._tried = 0.75 * _PRIOR, _PRIOR

    def begin(self, text: Sequence[int], count: int) -> None:
        """Start with a text that ``count`` more tokens will follow at most."""
        super().begin(text, count)
        self._limit = len(text) + count

    def close(self) -> None:
        """End the draft's own sequence."""
        if self._sequence is not None:
            self._engine.close(self._sequence)
            self._sequence = None

    def best_count(self) -> int:
        """How many tokens to propose so that a token takes the least time, by what was measured so far."""
        if not self._drafted.count:
            return min(_START, self.most)
        acceptance, step = self._right / self._tried, self._drafted.per_token

        def tokens_per_s(k: int) -> float:
            tokens = sum(acceptance**i for i in range(k + 1))
            return tokens / (k * step + self._pass_seconds(k))

        return max(range(1, self.most + 1), key=tokens_per_s)

    def _pass_seconds(self, k: int) -> float:
        """Of a pass that verifies ``k`` tokens; from the nearest that was measured where this one was not."""
        plain = self.plain.per_token
        if not self._passes:
            return plain * (1 + _PER_TOKEN * k)
        near = min(self._passes, key=lambda other: abs(other - k))
        return self._passes[near].per_token + plain * _PER_TOKEN * (k - near)

    def verified_step(self, seconds: float, proposed: int, accepted: int) -> None:
        """Verifying ``proposed`` tokens took so long; with the token after the ``accepted`` ones it gave one more."""
        self._passes.setdefault(proposed, Rate()).add(seconds, 1)
        tried = min(accepted + 1, proposed)
        decay = FORGET**tried
        self._right, self._tried = self._right * decay + accepted, self._tried * decay + tried
        super().verified_step(seconds + self._drafting, proposed, accepted)

    def _guess(self, most: int, sampler: Sampler | None) -> list[int]:
        drawer = None if sampler is None else sampler.copy()
        most, found, start = min(most, self.best_count()), [], time.perf_counter()
        sequence, n_unread, logits = self._catch_up()
        begun = time.perf_counter()
        while True:
            token = int(logits.argmax()) if drawer is None else drawer(logits[None], [[*self.text, *found]])[0]
            found.append(token)
            if len(found) == most:
                break
            (logits,) = self._engine.step([sequence], [token])
        self._read += found[:-1]
        now = time.perf_counter()
        if n_unread <= 2:  # as after every verified pass; more is read once, after the prompt or a pause
            self._drafted.add(now - start, most)
        elif most > 1:
            self._drafted.add(now - begun, most - 1)
        self._drafting = now - start if n_unread <= 2 else (now - begun) * most / max(1, most - 1)
        return found

    def _catch_up(self) -> tuple[OpenSequence, int, Logits]:
        """Read what the text has more, and take back what it has not: the sequence, how many tokens were read, and logits
        [V] after them."""
        text = self.text
        if self._sequence is None:
            self._sequence, logits = self._engine.open(text, self._limit - len(text))
            n_unread = len(text)
        else:
            same = self._settled
            while same < min(len(self._read), len(text) - 1) and self._read[same] == text[same]:
                same += 1
            if same < len(self._read):
                self._engine.roll_back(self._sequence, len(self._read) - same)
            unread = text[same:]
            n_unread, logits = len(unread), self._engine.extend(self._sequence, unread)
        self._read, self._settled = list(text), len(text)
        return self._sequence, n_unread, logits
