"""Documents laid end to end and cut into windows, so that text shorter than a window is used too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Token ids of one window, and the fingerprints of the documents that they come from."""

    ids: list[int]
    fingerprints: frozenset[str]


class Pack:
    """Joins pieces of documents, with the token ``end`` between where the model has one, to windows of ``length``."""

    def __init__(self, length: int, end: int | None) -> None:
        self._length, self._end = length, end
        self._ids: list[int] = []
        self._sources: list[str] = []  # of each token

    def add(self, ids: list[int], fingerprint: str) -> list[Window]:
        """The windows that a piece fills."""
        ends = [] if self._end is None or not ids or ids[-1] == self._end else [self._end]
        self._ids += [*ids, *ends]
        self._sources += [fingerprint] * (len(ids) + len(ends))
        whole = len(self._ids) // self._length * self._length
        found = [
            Window(self._ids[i : i + self._length], frozenset(self._sources[i : i + self._length]))
            for i in range(0, whole, self._length)
        ]
        del self._ids[:whole], self._sources[:whole]
        return found
