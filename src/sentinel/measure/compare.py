"""Two runs side by side: which rows changed by more than noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sentinel.errors import InputError
from sentinel.measure.results import Result, ResultSet

# Settings of a run that pruned rows depend on, and rows do not hold.
CALIBRATION = ("calibration", "calibration_tokens", "expand_kv")
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
    """``compared`` rows are in both runs with a perplexity, or with a speed-up whose old interval is known.

    ``unknown`` ones are in both with a speed-up whose old interval is unknown, so that nothing tells change from noise.
    ``references`` holds the milliseconds of each reference, old and new; they tell how fast the machine itself was.
    """

    changes: list[Change]
    compared: int
    unknown: int
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
    unknown = 0
    references: list[tuple[Result, float, float]] = []
    compared = 0
    for key in both:
        a, b = before[key], after[key]
        if a.is_reference and a.percentiles and b.percentiles:
            quantity = next(reversed(a.percentiles))
            references.append((b, a.percentiles[quantity]["p50"], b.percentiles[quantity]["p50"]))
        pairs = _comparable(a, b)
        compared += bool(pairs)
        unknown += bool(a.speedup and b.speedup and not a.is_reference and not a.has_interval)
        changes += [pair for pair in pairs if not pair.low <= pair.new <= pair.high]
    return Comparison(
        changes,
        compared,
        unknown,
        [before[key] for key in before if key not in after],
        [after[key] for key in after if key not in before],
        references,
        old.environment.differences(new.environment),
    )


def _by_key(results: ResultSet, which: str) -> dict[tuple[object, ...], Result]:
    keys = [(*row.key, *_calibration(results, row)) for row in results.results]
    counts = Counter(keys)
    twice = next((row for row, key in zip(results.results, keys, strict=True) if counts[key] > 1), None)
    if twice is not None:
        raise InputError(
            f"the {which} file has two rows of {twice.suite} {twice.engine} that measure the same; remove one of them"
        )
    return dict(zip(keys, results.results, strict=True))


def _calibration(results: ResultSet, row: Result) -> tuple[object, ...]:
    """The settings of its run that a pruned row depends on; they have no part in the others."""
    if not (row.heads_pruned or row.neurons_pruned):
        return ()
    run = results.runs.get(row.suite, {})
    settings = run.get("settings", run)
    return tuple(settings.get(name) for name in CALIBRATION)


def _comparable(old: Result, new: Result) -> list[Change]:
    """The quantities that both rows have, changed or not: the speed-up, but of a reference, which is 1 by definition, and
    the perplexity, which is of the same text and has no sampling noise.
    """
    found: list[Change] = []
    if old.speedup and new.speedup and old.speedup_low and old.speedup_high and not old.is_reference:
        low, high = old.speedup_low * (1 - MARGIN), old.speedup_high * (1 + MARGIN)
        found.append(Change(new, "speed-up", old.speedup, new.speedup, low, high))
    if old.perplexity and new.perplexity:
        low, high = old.perplexity * (1 - MARGIN), old.perplexity * (1 + MARGIN)
        found.append(Change(new, "perplexity", old.perplexity, new.perplexity, low, high))
    return found
