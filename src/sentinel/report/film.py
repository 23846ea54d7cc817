"""The film of an adaptation: a layer x head map for every cycle, and the held-out quality beside it."""

from __future__ import annotations

from typing import Any

import altair as alt

from sentinel.adapt.cycles.adaptation import Adaptation, Cycle
from sentinel.adapt.cycles.masked import Head
from sentinel.adapt.recovery.likelihood import finite, perplexity_of
from sentinel.report.charts import BLUE, GREY

STATES = {"stays": BLUE, "regrown": "#2fa36b", "pruned": "#d9534f", "parked": "#e6e9ee"}
COLUMNS = 4  # small maps side by side


def film(record: Adaptation, *, slider: bool = True) -> Any:
    """Maps of what stays, was regrown, was pruned and is parked in each cycle: one map with a ``slider``, or all of them
    side by side, for pictures."""
    rows = [row for cycle in record.cycles for row in _cells(cycle, record.groups)]
    cells = alt.Chart(alt.Data(values=rows)).mark_rect(stroke="white", strokeWidth=0.5)
    cells = cells.encode(
        x=alt.X("layer:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("head:O"),
        color=alt.Color(
            "state:N", scale=alt.Scale(domain=list(STATES), range=list(STATES.values())), title="in this cycle"
        ),
        tooltip=["layer:O", "head:O", "state:N", "importance:Q", "entropy:Q", "gate gradient:Q"],
    )
    if slider:
        last = len(record.cycles)
        chosen = alt.param(name="shown", value=last, bind=alt.binding_range(min=1, max=last, step=1, name="cycle "))
        maps = cells.add_params(chosen).transform_filter("datum.cycle == shown").properties(width={"step": 18})
        shown = maps.properties(height={"step": 18}, title=_title(record))
    else:
        small = cells.properties(width=200, height={"step": 9})
        shown = small.facet("cycle:O", columns=COLUMNS, title=_title(record))
    return alt.vconcat(shown, _quality(record)).resolve_scale(color="independent")


def _cells(cycle: Cycle, groups: list[int]) -> list[dict[str, Any]]:
    pruned, regrown = set(cycle.pruned), set(cycle.regrown)
    rows = []
    for layer, count in enumerate(groups):
        for group in range(count):
            head = Head(layer, group)
            if group in cycle.kept[layer]:
                state = "regrown" if head in regrown else "stays"
            else:
                state = "pruned" if head in pruned else "parked"
            signals = {
                "importance": cycle.importance[layer][group],
                "entropy": cycle.entropy[layer][group],
                "gate gradient": cycle.gate_gradient[layer][group],
            }
            rounded = {name: None if value is None else float(f"{value:.4g}") for name, value in signals.items()}
            rows.append({"cycle": cycle.number + 1, "layer": layer, "head": group, "state": state, **rounded})
    return rows


def _quality(record: Adaptation) -> Any:
    dense = record.dense_nll or 0.0
    rows = [
        {
            "cycle": cycle.number + 1,
            "when": when,
            "perplexity over dense": finite(round(perplexity_of(nll - dense), 4)),
            "heads": cycle.heads,
        }
        for cycle in record.cycles
        for when, nll in (("pruned", cycle.pruned_nll), ("learned", cycle.held_out_nll))
    ]
    chart = alt.Chart(alt.Data(values=rows)).mark_line(point={"size": 60}, strokeWidth=2)
    return chart.encode(
        x=alt.X("cycle:O", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("perplexity over dense:Q", scale=alt.Scale(zero=False), title="held-out perplexity over dense"),
        color=alt.Color(
            "when:N", scale=alt.Scale(domain=["pruned", "learned"], range=[GREY, BLUE]), title="after it has"
        ),
        tooltip=["cycle:O", "when:N", "perplexity over dense:Q", "heads:Q"],
    ).properties(width=420, height=180)


def _title(record: Adaptation) -> str:
    return f"{record.model}: head groups of a budget of {record.budget}, cycle by cycle"
