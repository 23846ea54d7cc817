"""What a table's numbers say in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sentinel.measure.results import Result

PLAIN, PAYS, TOO_LITTLE = "minimal", ": pays", "too little text to tell"
FEATURES = {"no-baseline": "U-Net skips", "no-unet": "baseline integration", "all": "both"}


def features_that_pay(results: Sequence[Result]) -> str:
    """Whether skips and baseline pay, at every pruning ratio and level of the integration suite's rows that was judged.

    One pays if its perplexity is below that of the plain model, pruned and recovered alike, by over two standard errors
    (as if the two were not judged on the same text, which is the careful way), and if no plain model of the same level,
    at whatever pruning ratio, is as fast and as good.
    """
    said = []
    for plain, verdicts in _verdicts(results):
        parts = [f"{name} {verdict}" for name, verdict in verdicts.items()]
        said.append(f"{plain.heads_pruned:.0%} of heads removed, level {plain.level}: {'; '.join(parts)}.")
    return " ".join(["Against minimal,", *said]) if said else ""


def paying(results: Sequence[Result]) -> list[str]:
    """The features that pay at any pruning ratio and level."""
    found = [name for _, verdicts in _verdicts(results) for name, said in verdicts.items() if said.endswith(PAYS)]
    return list(dict.fromkeys(found))


def _verdicts(results: Sequence[Result]) -> list[tuple[Result, dict[str, str]]]:
    """What is said of every feature, beside the plain row that it is compared with."""
    judged = [row for row in results if row.perplexity_ratio is not None and row.tokens_per_s and row.heads_pruned]
    found = []
    for plain in (row for row in judged if row.configuration == PLAIN):
        rivals = [row for row in results if row.configuration == PLAIN and row.level == plain.level]
        rows = {row.configuration: row for row in judged if _place(row) == _place(plain)}
        verdicts = {name: _verdict(rows[key], plain, rivals) for key, name in FEATURES.items() if key in rows}
        if verdicts:
            found.append((plain, verdicts))
    return found


def _place(row: Result) -> tuple[float | None, int | None]:
    return row.heads_pruned, row.level


def _verdict(row: Result, plain: Result, rivals: Sequence[Result]) -> str:
    assert row.perplexity_ratio and plain.perplexity_ratio and row.tokens_per_s and plain.tokens_per_s
    change = row.perplexity_ratio / plain.perplexity_ratio - 1
    errors = [(r.perplexity_ratio, r.perplexity_ratio_stderr) for r in (row, plain)]
    numbers = f"{100 * change:+.1f} % perplexity, {row.tokens_per_s / plain.tokens_per_s:.2f}x the speed"
    known = [error / value for value, error in errors if value and error is not None]
    if len(known) < len(errors):
        return f"{numbers}: {TOO_LITTLE}"
    if change >= -2 * math.hypot(*known):
        return f"{numbers}: does not pay"
    for rival in rivals:
        good = rival.perplexity_ratio is not None and rival.perplexity_ratio <= row.perplexity_ratio
        if good and (rival.tokens_per_s or 0) >= row.tokens_per_s:
            return f"{numbers}: does not pay, as minimal is as fast and as good without {rival.heads_pruned or 0:.0%}"
    return f"{numbers}{PAYS}"
