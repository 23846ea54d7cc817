"""Numbers of a result as text: the same in the terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Callable

from sentinel.measure.results import Result

Column = tuple[str, Callable[[Result], str]]

# Engines whose name in the files says less than it could. "Original" is kept for what the original report says.
NAMES = {
    "hf-generate": "Hugging Face generate()",
    "attention-original": "head by head (level 0)",
    "attention-optimised": "fused (level 1)",
}


def engine_name(name: str | None) -> str:
    """An engine as readers are told of it."""
    return "–" if name is None else NAMES.get(name, name)


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where it does not apply."""
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def heads(result: Result) -> str:
    """The share of heads that are gone; level 0 only masks them, which saves nothing."""
    masked = " (masked)" if result.level == 0 and result.heads_pruned else ""
    return percent(result.heads_pruned) + masked


def yes_or_no(value: bool | None) -> str:
    """A truth, or a dash where it does not apply."""
    return {True: "yes", False: "no", None: "–"}[value]


def times(value: float | None) -> str:
    """A factor."""
    return "–" if value is None else f"{value:,.3f}x" if value < 100 else f"{value:,.0f}x"


def ratio(result: Result) -> str:
    """The speed-up with its interval, a dash where that is not known; "no difference" where the interval spans 1."""
    if result.speedup is None:
        return "–"
    if result.is_reference:
        return "1 (reference)"
    if not result.has_interval:
        return f"{result.speedup:.2f}x (–)"
    if result.no_difference:
        return "no difference"
    return f"{result.speedup:.2f}x ({result.speedup_low:.2f}–{result.speedup_high:.2f})"


def saved(result: Result) -> str:
    """The share of time saved over that of bytes removed with its interval, a dash where that is not known."""
    low, high = result.saved_over_removed_low, result.saved_over_removed_high
    if result.saved_over_removed is None:
        return "–"
    ends = "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"
    return f"{result.saved_over_removed:.2f} ({ends})"


def error(value: float | None, digits: int) -> str:
    """What follows a number with its standard error; a dash for one that is not known, never a 0 by rounding."""
    least = 10.0**-digits
    return " ± –" if value is None else f" ± {value:,.{digits}f}" if value >= least / 2 else f" ± <{least:.{digits}f}"


def perplexity(result: Result) -> str:
    """A perplexity with its standard error; "inf" where the loss was judged and is beyond any perplexity."""
    if result.perplexity is None:
        return "–" if result.nll is None else "inf"
    return f"{result.perplexity:,.2f}{error(result.perplexity_stderr, 2)}"


def over_dense(result: Result) -> str:
    """A perplexity over the dense model's with its standard error; without one where nothing differs."""
    if result.perplexity_ratio is None:
        return "–"
    if result.perplexity_ratio == 1.0 and not result.perplexity_ratio_stderr:
        return "1 (reference)"
    return f"{times(result.perplexity_ratio)}{error(result.perplexity_ratio_stderr, 3)}"


def accuracy(result: Result) -> str:
    """A share of right answers with its standard error."""
    if result.accuracy is None:
        return "–"
    spread = " ± –" if result.accuracy_stderr is None else f" ± {100 * result.accuracy_stderr:.1f}"
    return f"{100 * result.accuracy:.1f}{spread} %"


def of_kind(kind: str, result: Result) -> str:
    """Perplexity over the dense model's on one kind of text."""
    return times(result.by_kind.get(kind, {}).get("perplexity_ratio"))


def milliseconds(result: Result) -> str:
    """The median time of one call, of the rows that hold nothing else."""
    return number(result.percentiles.get("total_ms", {}).get("p50"), 3)


def percentile(key: str, which: str, result: Result) -> str:
    """A percentile of a quantity, as p95 of ttft_ms."""
    return number(result.percentiles.get(key, {}).get(which))
