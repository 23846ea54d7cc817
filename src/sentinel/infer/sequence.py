"""One open sequence of an engine: what it has read, and how many tokens can be taken away from it again."""

from __future__ import annotations

from dataclasses import dataclass

from sentinel.errors import InputError
from sentinel.models.layer_spec import WINDOW_SLACK, ring_size
from sentinel.models.spec import ModelSpec


@dataclass(eq=False)
class OpenSequence:
    """A sequence that an engine has open: it has read ``length`` tokens, and has room for ``limit`` in all.

    ``slot`` is where the engine keeps its keys and values. ``most`` is what it had read when tokens were taken away.
    """

    slot: int
    length: int
    limit: int
    most: int = 0

    @property
    def reach(self) -> int:
        """The most tokens that it has held."""
        return max(self.length, self.most)

    def take_away(self, n_token: int, spec: ModelSpec) -> None:
        """Forget the last ``n_token`` tokens, never the first; `InputError` for more than a model ``spec`` allows.

        A ring of `ring_size` places has lost position p once it has held position p + its size. The next token looks at
        the window before it, so that a sequence can be `WINDOW_SLACK` tokens shorter than the longest it was.
        """
        if not 0 <= n_token < self.length:
            raise InputError(f"the sequence has {self.length} tokens; {n_token} can't be taken away")
        turned = [window for window in spec.windows if ring_size(window, self.reach) < self.reach]
        most = max(0, self.length - (self.reach - WINDOW_SLACK))
        if turned and n_token > most:
            raise InputError(
                f"a layer keeps a window of {turned[0]} tokens and {WINDOW_SLACK} more, and the sequence has held "
                f"{self.reach}; at most {most} tokens can be taken away, not {n_token}"
            )
        self.length, self.most = self.length - n_token, self.reach
