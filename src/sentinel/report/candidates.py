"""What can be chosen: rows of speed joined with rows of quality, only where both are of the same configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sentinel.errors import InputError
from sentinel.measure.results import Result

# Suites whose rows are speeds of generation, best first: the first row of a configuration is taken.
SPEED_SUITES = ("pruning", "levels", "decode", "quality")
STORED = "stored"  # suite of rows of quality that ship with the package, see `sentinel.report.store`
SAME_SIZE = 0.01  # models whose parameter counts differ by more are not the same configuration
EQUAL_QUALITY = 0.001  # perplexities that differ by less count as equal


@dataclass(frozen=True)
class Shape:
    """What a configuration computes: precision and removed shares, in percent. Levels 0 to 2 compute the same."""

    precision: str
    heads: int
    neurons: int

    @classmethod
    def of(cls, row: Result) -> Shape:
        return cls(
            row.precision or "fp32", round(100 * (row.heads_pruned or 0)), round(100 * (row.neurons_pruned or 0))
        )

    @property
    def is_dense(self) -> bool:
        """True for the model itself, to which perplexities are compared."""
        return self == Shape("fp32", 0, 0)

    def __str__(self) -> str:
        parts = [self.precision] if self.precision != "fp32" else []
        parts += [f"{self.heads} % of heads removed"] if self.heads else []
        parts += [f"{self.neurons} % of neurons removed"] if self.neurons else []
        return ", ".join(parts) or "fp32, not pruned"


@dataclass(frozen=True)
class Candidate:
    """A configuration with its speed, and its quality where that was measured (``perplexity_ratio`` over dense)."""

    speed: Result
    quality: Result | None
    perplexity_ratio: float | None
    peak_memory_mb: float | None

    @property
    def shape(self) -> Shape:
        return Shape.of(self.speed)

    @property
    def level(self) -> int:
        return self.speed.level or 0

    @property
    def name(self) -> str:
        shape = str(self.shape)  # level 0 only masks heads
        recovered = ", recovered" if self.speed.recovery_steps else ""
        return f"level {self.level}, {shape if self.level else shape.replace('removed', 'masked')}{recovered}"

    @property
    def is_stored(self) -> bool:
        """True when the quality is not of here, but of the stored results of a full run."""
        return self.quality is not None and self.quality.suite == STORED

    @property
    def tokens_per_s(self) -> float:
        return self.speed.tokens_per_s or 0.0

    @property
    def tpot_ms(self) -> float:
        return self.speed.tpot_ms or float("inf")

    @property
    def weights_mb(self) -> float | None:
        """MB of weights that one token reads: what the model itself takes up, known for every configuration."""
        streamed = self.speed.weight_bytes_per_token
        return None if streamed is None else streamed / 1e6

    def dominates(self, other: Candidate) -> bool:
        """True when this is nowhere worse and somewhere better in speed, perplexity and bytes of weights."""
        mine, theirs = self._costs(), other._costs()
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    def _costs(self) -> tuple[float, float, float]:
        ratio = float("inf") if self.perplexity_ratio is None else self.perplexity_ratio
        return (-self.tokens_per_s, ratio, float("inf") if self.weights_mb is None else self.weights_mb)


def rows_of_model(results: Sequence[Result], model: str) -> list[Result]:
    """The rows of one model; `InputError` when there are none."""
    rows = [row for row in results if row.model == model]
    if not rows:
        found = ", ".join(sorted({row.model for row in results})) or "nothing"
        raise InputError(
            f"the results hold no measurement of {model}, only of {found}; measure it with 'sentinel report'"
        )
    return rows


def candidates(rows: Sequence[Result]) -> list[Candidate]:
    """All configurations of one model whose speed was measured at batch 1 and with the same workload."""
    known = perplexity_ratios(rows)
    found: dict[tuple[int, Shape], Candidate] = {}
    for row in _same_workload(rows):
        shape = Shape.of(row)
        ratio, quality = _quality_of(row, shape, known)
        if row.level is not None:
            found.setdefault((row.level, shape), Candidate(row, quality, ratio, _peak_memory(row, rows)))
    return sorted(found.values(), key=lambda c: c.tokens_per_s)


def frontier(found: Sequence[Candidate]) -> list[Candidate]:
    """Candidates of known quality that no other beats in speed, perplexity and bytes of weights together, slowest first."""
    judged = [c for c in found if c.perplexity_ratio is not None]
    return [c for c in judged if not any(other.dominates(c) for other in judged)]


def perplexity_ratios(rows: Iterable[Result]) -> list[tuple[Result, float]]:
    """Rows with their perplexity over the dense model's: as measured, or over the dense row of the same text.

    Rows that are only of kinds of text that the model was made with are left out: they flatter it.
    """
    rows = [r for r in rows if r.seen_kind is not True and (r.perplexity is not None or r.perplexity_ratio is not None)]
    dense = {_text(row): row.perplexity for row in rows if Shape.of(row).is_dense and row.compensated is None}
    found = []
    for row in rows:
        base = dense.get(_text(row))
        if row.perplexity_ratio is not None:
            found.append((row, row.perplexity_ratio))
        elif base and row.perplexity:
            found.append((row, row.perplexity / base))
    return found


def missing(found: Sequence[Candidate], rows: Sequence[Result], model: str) -> list[str]:
    """What was not measured and therefore not considered, one sentence each."""
    said = []
    no_quality = [str(shape) for shape in dict.fromkeys(c.shape for c in found if c.perplexity_ratio is None)]
    if no_quality:
        said.append(
            f"No perplexity was measured for {'; '.join(no_quality)} on kinds of text that it has not seen: "
            f"'sentinel bench quality {model}' does."
        )
    fast = {c.shape for c in found}
    judged = dict.fromkeys(Shape.of(row) for row, _ in perplexity_ratios(rows) if row.suite != STORED)
    no_speed = [str(shape) for shape in judged if shape not in fast]
    if no_speed:
        said.append(f"No speed was measured for {'; '.join(no_speed)}: 'sentinel bench pruning {model}' does.")
    known = sum(c.peak_memory_mb is not None for c in found)
    if known < len(found):
        said.append(
            f"Peak memory was measured for {known} of {len(found)} configurations: 'sentinel bench decode' does."
        )
    return said


def _same_workload(rows: Sequence[Result]) -> list[Result]:
    """Rows of the suites of speed in order of preference, all of the workload of the first suite that was measured."""
    timed = [r for suite in SPEED_SUITES for r in rows if r.suite == suite and r.tokens_per_s and r.batch == 1]
    counts = Counter((r.prompt_tokens, r.new_tokens) for r in timed if r.suite == timed[0].suite)
    common = counts.most_common(1)[0][0] if counts else None
    return [r for r in timed if (r.prompt_tokens, r.new_tokens) == common]


def _quality_of(row: Result, shape: Shape, known: Sequence[tuple[Result, float]]) -> tuple[float | None, Result | None]:
    """The best measured perplexity of what ``row`` runs: of here before stored ones, compensated before those not."""
    if shape.is_dense:
        return 1.0, None
    same = [(r, ratio) for r, ratio in known if Shape.of(r) == shape and _same_size(r, row)]
    if not same:
        return None, None
    best, ratio = min(same, key=lambda pair: (pair[0].suite == STORED, pair[0].compensated is False, pair[1]))
    return ratio, best


def _peak_memory(row: Result, rows: Sequence[Result]) -> float | None:
    """The peak memory of the same configuration in the same use, in whichever suite it was measured."""
    use = (row.level, Shape.of(row), row.batch, row.prompt_tokens)
    same = (r for r in rows if (r.level, Shape.of(r), r.batch, r.prompt_tokens) == use and _same_size(r, row))
    return next((r.peak_memory_mb for r in same if r.peak_memory_mb is not None and r.suite != "load"), None)


def _same_size(a: Result, b: Result) -> bool:
    return not a.parameters or not b.parameters or abs(a.parameters / b.parameters - 1) <= SAME_SIZE


def _text(row: Result) -> tuple[str, str | None, int | None, int | None]:
    return (row.suite, row.text, row.context, row.tokens)
