"""Numbers of a result as text: the same in the terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Callable

from sentinel.measure.results import Result

Column = tuple[str, Callable[[Result], str]]


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where it does not apply."""
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def yes_or_no(value: bool | None) -> str:
    """A truth, or a dash where it does not apply."""
    return {True: "yes", False: "no", None: "–"}[value]


def times(value: float | None) -> str:
    """A factor."""
    return "–" if value is None else f"{value:,.3f}x" if value < 100 else f"{value:,.0f}x"


def ratio(result: Result) -> str:
    """The speed-up with its interval; "no difference" where the interval spans 1."""
    if result.speedup is None:
        return "–"
    if result.is_reference:
        return "1 (reference)"
    if result.no_difference:
        return "no difference"
    return f"{result.speedup:.2f}x ({result.speedup_low:.2f}–{result.speedup_high:.2f})"


def perplexity(result: Result) -> str:
    """A perplexity with its standard error."""
    if result.perplexity is None:
        return "–"
    return f"{result.perplexity:,.2f} ± {result.perplexity_stderr or 0:,.2f}"


def milliseconds(result: Result) -> str:
    """The median time of one call, of the rows that hold nothing else."""
    return number(result.percentiles.get("total_ms", {}).get("p50"), 3)
