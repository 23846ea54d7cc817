"""Two runs side by side: which rows changed by more than noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sentinel.errors import InputError
from sentinel.measure.results import Result, ResultSet

MARGIN = 0.03  # by which the old interval is widened on both sides


@dataclass(frozen=True)
class Change:
    """A row whose ``quantity`` left the old one's interval, which was widened by `MARGIN`."""

    row: Result
    quantity: str
    old: float
    new: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """True when the change is for the better."""
        return (self.new > self.old) == (self.quantity == "speed-up")


@dataclass(frozen=True)
class Comparison:
    """``compared`` rows are in both runs with a speed-up, or with a perplexity on the same text.

    ``references`` holds the milliseconds of each reference, old and new; they tell how fast the machine itself was.
    """

    changes: list[Change]
    compared: int
    only_old: list[Result]
    only_new: list[Result]
    references: list[tuple[Result, float, float]]
    environment: list[str]

    @property
    def agreeing(self) -> int:
        """Rows without a change."""
        return self.compared - len({change.row.key for change in self.changes})


def compare(old: ResultSet, new: ResultSet) -> Comparison:
    """Match rows by their key. Raises `InputError` when a key is there twice, or when no row is in both."""
    before, after = _by_key(old, "old"), _by_key(new, "new")
    both = [key for key in before if key in after]
    if not both:
        raise InputError("the two files have no row in common: they hold other suites, models or settings")
    changes: list[Change] = []
    references: list[tuple[Result, float, float]] = []
    compared = 0
    for key in both:
        a, b = before[key], after[key]
        if a.is_reference and a.percentiles and b.percentiles:
            quantity = next(reversed(a.percentiles))
            references.append((b, a.percentiles[quantity]["p50"], b.percentiles[quantity]["p50"]))
        speed, perplexity = _same_speed(a, b), _same_text(a, b)
        compared += speed or perplexity
        if speed:
            changes += _speed_change(a, b)
        if perplexity:
            changes += _perplexity_change(a, b)
    return Comparison(
        changes,
        compared,
        [before[key] for key in before if key not in after],
        [after[key] for key in after if key not in before],
        references,
        old.environment.differences(new.environment),
    )


def _by_key(results: ResultSet, which: str) -> dict[tuple[object, ...], Result]:
    counts = Counter(row.key for row in results.results)
    twice = next((row for row in results.results if counts[row.key] > 1), None)
    if twice is not None:
        raise InputError(
            f"the {which} file has two rows of {twice.suite} {twice.engine} with the same settings; measure it again"
        )
    return {row.key: row for row in results.results}


def _same_speed(old: Result, new: Result) -> bool:
    """True when both have a speed-up, which of a reference is 1 by definition."""
    return not old.is_reference and None not in (old.speedup, old.speedup_low, old.speedup_high, new.speedup)


def _same_text(old: Result, new: Result) -> bool:
    """True when both have a perplexity, and of the same text: it then has no sampling noise."""
    texts = ((row.text, row.context, row.tokens) for row in (old, new))
    return None not in (old.perplexity, new.perplexity) and len(set(texts)) == 1


def _speed_change(old: Result, new: Result) -> list[Change]:
    assert old.speedup and old.speedup_low and old.speedup_high and new.speedup
    return _change(new, "speed-up", old.speedup, new.speedup, (old.speedup_low, old.speedup_high))


def _perplexity_change(old: Result, new: Result) -> list[Change]:
    assert old.perplexity and new.perplexity
    return _change(new, "perplexity", old.perplexity, new.perplexity, (old.perplexity, old.perplexity))


def _change(row: Result, quantity: str, old: float, new: float, interval: tuple[float, float]) -> list[Change]:
    low, high = interval[0] * (1 - MARGIN), interval[1] * (1 + MARGIN)
    return [] if low <= new <= high else [Change(row, quantity, old, new, low, high)]
