"""Speed against quality: every configuration that was measured, and the frontier that nothing beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from sentinel.report.candidates import Candidate
from sentinel.report.cells import number

WIDTH = 620
PRECISIONS = {"fp32": "#3b7dd8", "int8": "#cf7322", "int4": "#2f9e6e"}
INK = "#868f9d"


def frontier_chart(found: Sequence[Candidate], labels: Mapping[str, Candidate]) -> Any:
    """Tokens/s against the increase in perplexity; ``labels`` names the candidates that are recommended.

    None when no quality is known but the dense model's own, which every lossless level shares.
    """
    judged = [c for c in found if c.perplexity_ratio is not None]
    if not any(c.quality is not None for c in judged):
        return None
    rows = [_row(c) for c in judged]
    upper = [row for row in rows if not any(_beats(other, row) for other in rows)]
    named = [
        {**_row(c), "label": ", ".join(n for n, other in labels.items() if other.name == c.name)}
        for c in {c.name: c for c in labels.values()}.values()
    ]
    room = 1.1 * max(row["tokens per second"] for row in rows)
    x = alt.X("tokens per second:Q", scale=alt.Scale(domain=[0, room], nice=False), title="tokens/s")
    y = alt.Y(
        "increase:Q",
        scale=alt.Scale(type="symlog", constant=0.02, padding=14, nice=False),
        axis=alt.Axis(format="+.0%", values=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 3, 10, 30, 100]),
        title="perplexity over the dense model's",
    )
    line = alt.Chart(alt.Data(values=upper)).mark_line(color=INK, strokeWidth=2, strokeDash=[4, 3]).encode(x=x, y=y)
    points = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=90)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "precision:N", scale=alt.Scale(domain=list(PRECISIONS), range=list(PRECISIONS.values())), title="precision"
            ),
            shape=alt.Shape("level:N", title="level"),
            tooltip=[
                "configuration:N", "tokens per second:Q", alt.Tooltip("increase:Q", format="+.1%"), "weights MB:N",
                "peak MB:N", "quality:N", "criterion:N",
            ],
        )
    )  # fmt: skip
    inwards = f"datum['tokens per second'] > {room / 2} ? 'right' : 'left'"  # names have room on a phone too
    text = (
        alt.Chart(alt.Data(values=named))
        .mark_text(dy=-12, align=alt.expr(inwards), fontWeight="bold")
        .encode(x=x, y=y, text="label:N")
    )
    return (line + points + text).properties(width=WIDTH, height=340)


def _row(candidate: Candidate) -> dict[str, Any]:
    quality = candidate.quality
    return {
        "configuration": candidate.name,
        "precision": candidate.shape.precision,
        "level": str(candidate.level),
        "tokens per second": round(candidate.tokens_per_s, 2),
        "increase": round((candidate.perplexity_ratio or 1.0) - 1, 4),
        "weights MB": number(candidate.weights_mb, 0),
        "peak MB": number(candidate.peak_memory_mb, 0),
        "quality": "stored" if candidate.is_stored else "measured here",
        "criterion": "–" if quality is None or quality.criterion is None else quality.criterion,
    }


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    mine, theirs = ((-row["tokens per second"], row["increase"]) for row in (one, other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]
