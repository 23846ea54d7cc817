"""Two runs side by side: which rows changed by more than noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sentinel.errors import InputError
from sentinel.measure.results import Result, ResultSet

MARGIN = 0.03  # by which the old interval is widened on both sides


@dataclass(frozen=True)
class Change:
    """A row's ``quantity``, old and new, and the old one's interval widened by `MARGIN`, outside which it has changed."""

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
        pairs = _comparable(a, b)
        compared += bool(pairs)
        changes += [pair for pair in pairs if not pair.low <= pair.new <= pair.high]
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


def _comparable(old: Result, new: Result) -> list[Change]:
    """The quantities that both rows have, changed or not: the speed-up, but of a reference, which is 1 by definition, and
    the perplexity of the same text, which has no sampling noise.
    """
    found: list[Change] = []
    if old.speedup and new.speedup and old.speedup_low and old.speedup_high and not old.is_reference:
        low, high = old.speedup_low * (1 - MARGIN), old.speedup_high * (1 + MARGIN)
        found.append(Change(new, "speed-up", old.speedup, new.speedup, low, high))
    same_text = (old.text, old.context, old.tokens) == (new.text, new.context, new.tokens)
    if same_text and old.perplexity and new.perplexity:
        low, high = old.perplexity * (1 - MARGIN), old.perplexity * (1 + MARGIN)
        found.append(Change(new, "perplexity", old.perplexity, new.perplexity, low, high))
    return found
