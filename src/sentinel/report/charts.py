"""Charts of results as Vega-Altair charts: interactive in HTML, drawn as SVG for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

from sentinel.errors import InputError
from sentinel.measure.results import Result

WIDTH = 560
BLUE, GREY = "#3b7dd8", "#9aa4b2"
DASHES = alt.Legend(symbolType="stroke", symbolStrokeColor=GREY)


def decode_chart(results: Sequence[Result]) -> Any:
    """Bars of tokens/s per engine, the roofline beside them as a tick."""
    rows = [
        {
            "engine": r.engine,
            "tokens per second": round(r.tokens_per_s or 0, 2),
            "roofline": round(r.roofline_tokens_per_s or 0, 2),
            "speed-up": round(r.speedup or 0, 3),
            "TTFT ms": round(r.ttft_ms or 0, 2),
            "TPOT ms": round(r.tpot_ms or 0, 2),
        }
        for r in results
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("engine:N", sort=None, title=None))
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.6}).encode(
        x=alt.X("tokens per second:Q", title="tokens/s (tick: roofline of the weights' format)"),
        color=alt.condition("datum.engine == 'hf-generate'", alt.value(GREY), alt.value(BLUE)),
        tooltip=[f"{key}:{'N' if key == 'engine' else 'Q'}" for key in rows[0]],
    )
    ticks = base.mark_tick(thickness=2, color="#d9534f").encode(x="roofline:Q")
    return (bars + ticks).properties(width=WIDTH, height={"step": 34})


def attention_chart(results: Sequence[Result]) -> Any:
    """Milliseconds of one attention layer against sequence length, both implementations, log scales."""
    rows = [
        {
            "tokens": r.prompt_tokens,
            "phase": r.phase,
            "implementation": r.engine.removeprefix("attention-")
            + (f", -{r.heads_pruned:.0%}" if r.heads_pruned else ""),
            "ms": round(r.percentiles["total_ms"]["p50"], 4),
            "speed-up": round(r.speedup or 1, 3),
        }
        for r in results
    ]
    chart = alt.Chart(alt.Data(values=rows)).mark_line(point={"size": 60}, strokeWidth=2.5)
    return chart.encode(
        x=alt.X("tokens:Q", scale=alt.Scale(type="log", base=2), title="sequence length, tokens"),
        y=alt.Y("ms:Q", scale=alt.Scale(type="log"), title="one layer, ms"),
        color=alt.Color("implementation:N", title=None),
        strokeDash=alt.StrokeDash("phase:N", title=None, legend=DASHES),
        tooltip=["implementation:N", "phase:N", "tokens:Q", "ms:Q", "speed-up:Q"],
    ).properties(width=WIDTH, height=260)


def quality_chart(results: Sequence[Result]) -> Any:
    """Speed against quality: tokens/s and perplexity over the dense model's, a line per criterion."""
    rows = [
        {
            "criterion": r.criterion or "not pruned",
            "compensated": {True: "compensated", False: "only removed", None: "not pruned"}[r.compensated],
            "heads removed": f"{r.heads_pruned or 0:.0%}",
            "tokens per second": round(r.tokens_per_s or 0, 2),
            "perplexity over dense": round(r.perplexity_ratio or 1, 4),
            "perplexity": round(r.perplexity or 0, 2),
        }
        for r in results
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("tokens per second:Q", scale=alt.Scale(zero=False), title="tokens/s, level 1"),
        y=alt.Y("perplexity over dense:Q", scale=alt.Scale(type="log"), title="perplexity over dense (log)"),
        color=alt.Color("criterion:N", title=None),
        strokeDash=alt.StrokeDash("compensated:N", title=None, legend=DASHES),
        tooltip=[
            f"{key}:{'Q' if ('p' in key[:1] and key != 'criterion') or key[0] == 't' else 'N'}" for key in rows[0]
        ],
    )
    lines = base.mark_line(strokeWidth=1.5)
    points = base.mark_point(filled=True, size=60).encode(shape=alt.Shape("heads removed:N", title="heads removed"))
    return (lines + points).properties(width=WIDTH, height=320)


def head_map(ranks: Sequence[Sequence[int]], kept_from: int | None = None) -> Any:
    """Layer x head map of removal ranks: dark heads are removed last. ``kept_from`` outlines the ranks that are kept."""
    rows = [
        {"layer": layer, "head": head, "rank": rank, "kept": kept_from is not None and rank >= kept_from}
        for layer, heads in enumerate(ranks)
        for head, rank in enumerate(heads)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)), y=alt.Y("head:O"))
    cells = base.mark_rect().encode(
        color=alt.Color("rank:Q", scale=alt.Scale(scheme="blues"), title="removal rank"),
        tooltip=["layer:O", "head:O", "rank:Q", "kept:N"],
    )
    marks = base.transform_filter("datum.kept").mark_point(color="#d9534f", size=24, filled=True)
    return (cells + marks if kept_from is not None else cells).properties(width=WIDTH, height={"step": 18})


def heads_chart(results: Sequence[Result]) -> Any:
    """The map of the best criterion at the ratio in the middle: what it keeps."""
    ranked = [r for r in results if r.head_ranks and r.compensated and r.perplexity_ratio and r.heads_pruned]
    middle = sorted({r.heads_pruned for r in ranked if r.heads_pruned})[len({r.heads_pruned for r in ranked}) // 2]
    best = min((r for r in ranked if r.heads_pruned == middle), key=lambda r: r.perplexity_ratio or 0)
    ranks = best.head_ranks or []
    removed = round(middle * sum(len(layer) for layer in ranks))
    title = f"Heads kept at {middle:.0%} by {best.criterion} (dot), and the order of removal"
    return head_map(ranks, removed).properties(title=title)


def check_chart_path(path: str | None) -> None:
    """Refuse a chart's file name that does not say how to draw it."""
    if path and not path.endswith((".html", ".svg")):
        raise InputError(f"--chart {path} must end in .html or .svg")


def chart_text(chart: Any, suffix: str) -> str:
    """A chart as the text of a self-contained ``.html`` page or an ``.svg`` picture."""
    if suffix == ".svg":
        return vl_convert.vegalite_to_svg(chart.configure(background="white", font="sans-serif").to_json())
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    spec = chart.to_json().replace("</", "<\\/")
    return (
        '<!doctype html><meta charset="utf-8"><title>Sentinel</title><link rel="icon" href="data:,"><div id="chart"></div>'
        f'<script type="module">{bundle}\nvegaEmbed("#chart", {spec}, {{actions: false}});</script>\n'
    )


CHARTS = {
    "decode": [decode_chart],
    "attention": [attention_chart],
    "quality": [quality_chart, heads_chart],
}


def charts(results: Sequence[Result]) -> dict[str, list[Any]]:
    """Charts by suite, for the suites that have results."""
    made: dict[str, list[Any]] = {}
    for suite, draw in CHARTS.items():
        rows = [result for result in results if result.suite == suite]
        if rows:
            made[suite] = [one(rows) for one in draw]
    return made
