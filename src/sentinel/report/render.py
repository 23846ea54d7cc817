"""HTML and Markdown reports: pure functions of a results file's content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from sentinel.files import write_folder, write_text
from sentinel.measure.results import ResultSet
from sentinel.report.charts import chart_text, javascript
from sentinel.report.content import Content, content_of
from sentinel.report.glossary import FirstUse
from sentinel.report.tables import to_markdown

TEMPLATES = Path(__file__).parent / "templates"
FRONTIER = "frontier"
RESULTS = "results.json"
REPORT_FILES = (RESULTS, "report.html", "report.md", "*.svg")


def render_html(results: ResultSet) -> str:
    """One self-contained page: tables, interactive charts, no request to the network."""
    return page_of(content_of(results))


def page_of(content: Content) -> str:
    """``content`` as that page."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    environment.filters["explained"] = FirstUse()
    specs = {name: json.dumps(fluid(chart)).replace("</", "<\\/") for name, chart in _named_charts(content).items()}
    return environment.get_template("report.html").render(
        content=content,
        specs=specs,
        bundle=javascript(),
    )


def _named_charts(content: Content) -> dict[str, Any]:
    """All charts by the name under which the page places them."""
    named = {} if content.frontier is None else {f"{FRONTIER}-0": content.frontier}
    return named | {
        f"{suite}-{number}": chart for suite, drawn in content.charts.items() for number, chart in enumerate(drawn)
    }


def fluid(chart: Any) -> dict[str, Any]:
    """The chart's specification, as wide as the page lets it be."""
    spec = json.loads(chart.to_json())
    return {
        **spec,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": "transparent",
    }


def render_markdown(results: ResultSet, chart_files: dict[str, list[str]]) -> str:
    """The same report for a repository; ``chart_files`` are pictures by suite."""
    content = content_of(results)
    lines = [f"# Sentinel report: {', '.join(content.models)}", ""]
    if content.lead is not None:
        lines += [content.lead.reason, ""]
        if content.lead.commands:
            lines += ["```", *content.lead.commands, "```", ""]
    if content.frontier is not None:
        lines += ["## Speed against quality", "", content.frontier_note, ""]
        lines += [*_pictures("Speed against quality", chart_files.get(FRONTIER, []))]
    for table in [*([content.recommendations] if content.recommendations else []), *content.sections]:
        lines += [f"## {table.title}", "", f"**{table.finding}**", "", table.note, ""]
        lines += _pictures(table.title, chart_files.get(table.suite, []))
        lines += [to_markdown(table), ""]
    if content.missing:
        lines += ["## Not measured", "", *(f"- {sentence}" for sentence in content.missing), ""]
    lines += ["## How the numbers were made", "", *(f"- {sentence}" for sentence in content.method), ""]
    lines += ["## Words", "", *(f"- **{word}**: {meaning}" for word, meaning in content.glossary.items()), ""]
    for title, rows in (("Settings", content.runs), ("Environment", content.environment)):
        if rows:
            lines += [
                f"## {title}",
                "",
                "| | |",
                "| --- | --- |",
                *(f"| {name} | {value} |" for name, value in rows),
                "",
            ]
    return "\n".join(lines)


def _pictures(title: str, files: list[str]) -> list[str]:
    return [line for file in files for line in (f"![{title}]({file})", "")]


def write_report(results: ResultSet, folder: str | Path, force: bool = False) -> None:
    """Write ``results.json``, ``report.html``, ``report.md`` and its pictures into ``folder``, whole or not at all.

    Raises `InputError` when ``folder`` holds anything; ``force`` replaces what sentinel wrote there, see `write_folder`.
    """
    with write_folder(folder, force) as temporary:
        results.write(temporary / RESULTS)
        files: dict[str, list[str]] = {}
        for name, chart in _named_charts(content_of(results)).items():
            write_text(temporary / f"{name}.svg", chart_text(chart, ".svg"))
            files.setdefault(name.rsplit("-", 1)[0], []).append(f"{name}.svg")
        write_text(temporary / "report.md", render_markdown(results, files))
        write_text(temporary / "report.html", render_html(results))
