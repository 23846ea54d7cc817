"""The frontier of a report, for the page to draw with the dial's own point on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentinel.errors import InputError


@dataclass(frozen=True)
class Frontier:
    """The model measured, a chart (Vega-Lite), whence it is, and how much each judged configuration adds to perplexity."""

    model: str
    chart: dict[str, Any]
    note: str
    known: list[dict[str, Any]]

    @property
    def body(self) -> dict[str, Any]:
        """As the page reads it."""
        return {"model": self.model, "chart": self.chart, "note": self.note, "known": self.known}


def frontier_of(place: str) -> Frontier:
    """The frontier of a report's folder, or of a results file. Raises `InputError` where there is none in it."""
    from sentinel.measure.results import ResultSet
    from sentinel.report.candidates import candidates
    from sentinel.report.content import content_of, main_model
    from sentinel.report.render import RESULTS, fluid
    from sentinel.report.store import with_stored

    path = Path(place).expanduser()
    results = ResultSet.read(path / RESULTS if path.is_dir() else path)
    content = content_of(results)
    if content.frontier is None:
        raise InputError(
            f"{place} knows speed and quality of no pruned or quantised model; measure with 'sentinel report'"
        )
    rows, model = with_stored(results).results, main_model(results.results)
    found = [c for c in candidates([row for row in rows if row.model == model]) if c.perplexity_ratio is not None]
    known = {
        (c.shape.precision, c.shape.heads, c.shape.neurons): round((c.perplexity_ratio or 1.0) - 1, 4) for c in found
    }
    where = results.environment
    return Frontier(
        model,
        fluid(content.frontier),
        f"{model}, measured {where.measured_at[:10]} on {where.cpu}, {where.threads} threads. {content.frontier_note}",
        [{"precision": p, "heads": h, "neurons": n, "increase": increase} for (p, h, n), increase in known.items()],
    )
