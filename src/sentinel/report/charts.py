"""Charts of results as Vega-Altair charts: interactive in HTML, drawn as SVG for Markdown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import altair as alt
import vl_convert

from sentinel.errors import InputError
from sentinel.measure.results import Result
from sentinel.report.candidates import STORED
from sentinel.report.cells import engine_name
from sentinel.report.head_map import heads_chart

WIDTH = 620
# Told apart on white and on black: three times as light or as dark as either (WCAG 2.2, 1.4.11).
BLUE, GREY, RED = "#3b7dd8", "#868f9d", "#d9534f"
PALETTE = [BLUE, "#cf7322", "#2f9e6e", "#b35ad6", "#a88616", "#1594a8", RED, GREY]


def _colour(field: str, title: str | None = None) -> alt.Color:
    return alt.Color(f"{field}:N", sort=None, scale=alt.Scale(range=PALETTE), title=title)


def _measured(field: str, values: Iterable[int | None], title: str) -> alt.X:
    """A logarithmic axis with ticks at what was measured, and nowhere else."""
    ticks = sorted({value for value in values if value})
    axis = alt.Axis(values=ticks, format=",d", labelOverlap=True)
    return alt.X(f"{field}:Q", scale=alt.Scale(type="log", base=2, nice=False), axis=axis, title=title)


def _dash(field: str) -> alt.StrokeDash:
    legend = alt.Legend(symbolType="stroke", symbolStrokeColor=GREY)
    return alt.StrokeDash(f"{field}:N", sort=None, title=None, legend=legend)


def _name(result: Result) -> str:
    """An engine, with what is removed, or masked at level 0."""
    done = "masked" if result.level == 0 else "removed"
    removed = [f"{share:.0%} {what} {done}" for share, what in _removed(result) if share]
    return ", ".join([engine_name(result.engine), *removed])


def _removed(result: Result) -> list[tuple[float, str]]:
    return [(result.heads_pruned or 0.0, "heads"), (result.neurons_pruned or 0.0, "neurons")]


def _rounded(value: float | None, digits: int) -> float | None:
    """A number for a chart, which leaves out what is None."""
    return None if value is None else round(value, digits)


def _speed(result: Result) -> dict[str, Any]:
    """What the tooltips of all charts of speed tell."""
    return {
        "engine": engine_name(result.engine),
        "heads removed": f"{result.heads_pruned or 0:.0%}",
        "neurons removed": f"{result.neurons_pruned or 0:.0%}",
        "tokens per second": _rounded(result.tokens_per_s, 2),
        "roofline": _rounded(result.roofline_tokens_per_s, 2),
        "speed-up": _rounded(result.speedup, 3),
        "low": _rounded(result.speedup_low, 3),
        "high": _rounded(result.speedup_high, 3),
        "over": engine_name(result.speedup_over),
    }


# An axis of names, each part of one on a line of its own, so that bars have room on a phone.
NAMES = alt.Axis(labelExpr="split(datum.label, ', ')", labelLimit=0)
SPEED_TIPS = [
    "engine:N", "heads removed:N", "neurons removed:N", "tokens per second:Q", "roofline:Q",
    "speed-up:Q", "low:Q", "high:Q", "over:N",
]  # fmt: skip


def bars_chart(results: Sequence[Result]) -> Any:
    """Bars of tokens/s per engine and width, the roofline beside them as a tick."""
    rows = [{"name": _name(r), "model": r.model, "reference": r.is_reference, **_speed(r)} for r in results]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=NAMES), tooltip=SPEED_TIPS
    )
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.6}).encode(
        x=alt.X("tokens per second:Q", title="tokens/s (tick: roofline)"),
        color=alt.condition("datum.reference", alt.value(GREY), alt.value(BLUE)),
    )
    ticks = base.transform_filter("datum.roofline != null").mark_tick(thickness=2, color=RED).encode(x="roofline:Q")
    return (bars + ticks).properties(width=WIDTH, height=36 * len({row["name"] for row in rows}))


def _spans(base: Any) -> Any:
    """The intervals of speed-ups, of the rows that have one."""
    return base.transform_filter("datum.low != null").mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")


def pruning_chart(results: Sequence[Result]) -> Any:
    """Speed-up against the share of heads removed, a line per level, dashed with as many neurons removed too."""
    rows = [
        {"share": r.heads_pruned or 0, "kind": "heads and neurons" if r.neurons_pruned else "heads", **_speed(r)}
        for r in results
        if r.level is not None
    ]
    dense = [{**row, "kind": "heads and neurons"} for row in rows if not row["share"] and row["kind"] == "heads"]
    rows += dense if any(row["kind"] != "heads" for row in rows) else []
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("share:Q", axis=alt.Axis(format="%", tickCount=4), title="heads removed"),
        y=alt.Y("speed-up:Q", title="speed-up over Hugging Face generate()", scale=alt.Scale(zero=False)),
        color=_colour("engine"),
        tooltip=SPEED_TIPS,
    )
    lines = base.mark_line(strokeWidth=2.5).encode(strokeDash=_dash("kind"))
    spans = _spans(base)
    points = base.mark_point(filled=True, size=60)
    return (lines + spans + points).properties(width=WIDTH, height=300)


def context_chart(results: Sequence[Result]) -> Any:
    """Speed-up of removed heads over the same level with all of them, against the length of the context."""
    rows = [{"context": r.prompt_tokens, **_speed(r)} for r in results if not r.is_reference]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_measured("context", [r.prompt_tokens for r in results], "tokens of context"),
        y=alt.Y("speed-up:Q", title="speed-up over the same level, not pruned", scale=alt.Scale(zero=False)),
        color=_colour("heads removed", "heads removed"),
        tooltip=["context:Q", *SPEED_TIPS],
    )
    lines = base.mark_line(strokeWidth=2.5).encode(strokeDash=_dash("engine"))
    spans = _spans(base)
    return (lines + spans + base.mark_point(filled=True, size=60)).properties(width=WIDTH, height=300)


def batch_chart(results: Sequence[Result]) -> Any:
    """Tokens/s of all sequences against their number."""
    rows = [{"batch": r.batch, **_speed(r)} for r in results]
    chart = alt.Chart(alt.Data(values=rows)).mark_line(point={"size": 60}, strokeWidth=2.5)
    return chart.encode(
        x=_measured("batch", [r.batch for r in results], "sequences at once"),
        y=alt.Y("tokens per second:Q", scale=alt.Scale(type="log"), title="tokens/s of all (log)"),
        color=_colour("engine"),
        tooltip=["batch:Q", *SPEED_TIPS],
    ).properties(width=WIDTH, height=300)


def attention_chart(results: Sequence[Result]) -> Any:
    """Milliseconds of one attention layer against sequence length, both implementations, log scales."""
    rows = [
        {
            "tokens": r.prompt_tokens,
            "phase": r.phase,
            "implementation": _name(r),
            "ms": round(r.percentiles["total_ms"]["p50"], 4),
            "speed-up": _rounded(r.speedup, 3),
        }
        for r in results
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_measured("tokens", [r.prompt_tokens for r in results], "tokens"),
        y=alt.Y("ms:Q", scale=alt.Scale(type="log"), title="one layer, ms (log)"),
        color=_colour("implementation"),
        detail="phase:N",
        tooltip=["implementation:N", "phase:N", "tokens:Q", "ms:Q", "speed-up:Q"],
    )
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=_dash("phase"))
    return (lines + base.mark_point(filled=True, size=50)).properties(width=WIDTH, height=300)


def load_chart(results: Sequence[Result]) -> Any:
    """Milliseconds from the start of a process to the loaded model and to the first token."""
    kinds = (("until loaded", "load_ms"), ("until the first token", "first_token_ms"))
    rows = [
        {
            "engine": engine_name(r.engine),
            "time": kind,
            "ms": round(getattr(r, key), 1),
            "peak memory MB": r.peak_memory_mb,
        }
        for r in results
        for kind, key in kinds
        if getattr(r, key) is not None
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(cornerRadiusEnd=3)
        .encode(
            y=alt.Y("engine:N", sort=None, title=None, axis=NAMES),
            yOffset=alt.YOffset("time:N", sort=None),
            x=alt.X("ms:Q", title="ms from the start"),
            color=_colour("time"),
            tooltip=["engine:N", "time:N", "ms:Q", "peak memory MB:Q"],
        )
        .properties(width=WIDTH, height=48 * len({row["engine"] for row in rows}))
    )


def quality_chart(results: Sequence[Result]) -> Any:
    """Perplexity over dense against the share of heads removed, a line per criterion; None if nothing was pruned."""
    pruned = [r for r in results if r.criterion and r.perplexity_ratio]
    if not pruned:
        return None
    kinds = {True: "compensated", False: "only removed", None: "not told"}
    rows = [
        {
            "criterion": r.criterion,
            "kind": kinds[r.compensated] + ("" if r.precision in (None, "fp32") else f", {r.precision}"),
            "share": r.heads_pruned or 0,
            "perplexity over dense": _rounded(r.perplexity_ratio, 4),
            "perplexity": _rounded(r.perplexity, 2),
            "tokens per second": _rounded(r.tokens_per_s, 2),
        }
        for r in pruned
    ]
    rows += [
        {**row, "share": 0.0, "perplexity over dense": 1.0, "perplexity": None, "tokens per second": None}
        for row in {(r["criterion"], r["kind"]): r for r in rows}.values()
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("share:Q", axis=alt.Axis(format="%", tickCount=4), title="heads removed"),
        y=alt.Y("perplexity over dense:Q", scale=alt.Scale(type="log"), title="perplexity over dense (log)"),
        color=_colour("criterion"),
        detail="kind:N",
        tooltip=["criterion:N", "kind:N", alt.Tooltip("share:Q", format=".0%", title="heads removed"),
                 "perplexity over dense:Q", "perplexity:Q", "tokens per second:Q"],
    )  # fmt: skip
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=_dash("kind"))
    return (lines + base.mark_point(filled=True, size=60)).properties(width=WIDTH, height=320)


def check_chart_path(path: str | None) -> None:
    """Refuse a chart's file name that does not say how to draw it."""
    if path and not path.endswith((".html", ".svg")):
        raise InputError(f"--chart {path} must end in .html or .svg")


@functools.cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script that a page can hold; it defines ``vegaEmbed``."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def chart_text(chart: Any, suffix: str) -> str:
    """A chart as the text of a self-contained ``.html`` page or an ``.svg`` picture."""
    if suffix == ".svg":
        styled = chart.configure(background="white", font="sans-serif").configure_legend(orient="top", columns=3)
        return vl_convert.vegalite_to_svg(styled.to_json())
    spec = chart.to_json().replace("</", "<\\/")
    return (
        '<!doctype html><meta charset="utf-8"><title>Sentinel</title><link rel="icon" href="data:,"><div id="chart"></div>'
        f'<script type="module">{javascript()}\nvegaEmbed("#chart", {spec}, {{actions: false}});</script>\n'
    )


CHARTS: dict[str, list[Callable[[Sequence[Result]], Any]]] = {
    "levels": [bars_chart],
    "decode": [bars_chart],
    "quality": [quality_chart, heads_chart],
    STORED: [quality_chart, heads_chart],
    "pruning": [pruning_chart],
    "integration": [bars_chart],
    "context": [context_chart],
    "batch": [batch_chart],
    "attention": [attention_chart],
    "load": [load_chart],
}


def charts(results: Sequence[Result]) -> dict[str, list[Any]]:
    """Charts by suite, for the suites that have something to draw."""
    made: dict[str, list[Any]] = {}
    for suite, draw in CHARTS.items():
        rows = [result for result in results if result.suite == suite]
        drawn = [chart for one in draw if (chart := one(rows)) is not None] if rows else []
        if drawn:
            made[suite] = drawn
    return made
