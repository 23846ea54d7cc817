"""Layer x head maps: the order of removal, and which heads a width keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from sentinel.measure.results import Result

WIDTH = 620
KEPT = "#e0822f"


def head_map(ranks: Sequence[Sequence[int]], levels: Sequence[float] = (), chosen: float | None = None) -> Any:
    """Map of removal ranks per layer and head: dark heads are removed last.

    With ``levels``, ratios of heads that are removed, dots mark what is kept, and a reader of the HTML chooses the level,
    ``chosen`` at first.
    """
    rows = [
        {"layer": layer, "head": head, "rank": rank}
        for layer, heads in enumerate(ranks)
        for head, rank in enumerate(heads)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("layer:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)), y=alt.Y("head:O")
    )
    cells = base.mark_rect().encode(
        color=alt.Color("rank:Q", scale=alt.Scale(scheme="blues"), title="removal rank"),
        tooltip=["layer:O", "head:O", "rank:Q"],
    )
    height = 18 * max((len(heads) for heads in ranks), default=1)  # a page that fits the width wants a number here
    if not levels:
        return cells.properties(width=WIDTH, height=height)
    level = alt.param(
        name="removed",
        value=levels[0] if chosen is None else chosen,
        bind=alt.binding_radio(
            options=list(levels), labels=[f"{ratio:.0%}" for ratio in levels], name="Heads removed: "
        ),
    )
    kept = f"datum.rank >= round(removed * {len(rows)})"
    marks = base.mark_point(color=KEPT, size=26, filled=True).transform_filter(kept).add_params(level)
    return (cells + marks).properties(width=WIDTH, height=height)


def heads_chart(results: Sequence[Result]) -> Any:
    """The map of the best criterion at the ratio in the middle, with its kept heads; None where nothing was ranked."""
    ranked = [
        r for r in results if r.head_ranks and r.heads_pruned and r.perplexity_ratio and r.compensated is not False
    ]
    if not ranked:
        return None
    ratios = sorted({r.heads_pruned for r in ranked if r.heads_pruned})
    middle = ratios[len(ratios) // 2]
    best = min((r for r in ranked if r.heads_pruned == middle), key=lambda r: r.perplexity_ratio or 0)
    title = alt.Title(
        [f"Heads that {best.criterion} keeps (dots),", "and the order in which it removes"], anchor="start"
    )
    return head_map(best.head_ranks or [], ratios, middle).properties(title=title)
