"""HTML and Markdown reports: pure functions of a results file's content."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import vl_convert

from sentinel.files import write_text
from sentinel.measure.results import Environment, ResultSet
from sentinel.report.charts import chart_text, charts
from sentinel.report.tables import number, tables, to_markdown

TEMPLATES = Path(__file__).parent / "templates"


def environment_rows(environment: Environment) -> list[tuple[str, str]]:
    """The environment in words."""
    bandwidth = "not measured" if environment.bandwidth_gb_s is None else f"{number(environment.bandwidth_gb_s)} GB/s"
    mhz, steal = environment.cpu_mhz, environment.steal
    notes = [] if not mhz else [" then ".join(f"{number(value, 0)} MHz" for value in mhz)]
    notes += [] if steal is None else [f"{100 * steal:.1f} % of processor time stolen by the host"]
    return [
        ("Processor", f"{environment.cpu}, {environment.cores} cores, {environment.threads} threads used"),
        ("While measuring", ", ".join(notes) or "not told by the system"),
        ("Memory", f"{number(environment.memory_gb)} GB; bandwidth of a copy or a sum, the larger: {bandwidth}"),
        ("System", environment.system),
        ("Device", environment.device),
        ("Versions", ", ".join(f"{name} {version}" for name, version in environment.versions.items())),
        ("Measured", environment.measured_at),
    ]


def render_html(results: ResultSet) -> str:
    """One self-contained page: tables, interactive charts, no request to the network."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    specs = {
        f"{suite}-{number}": json.loads(chart.to_json())
        for suite, drawn in charts(results.results).items()
        for number, chart in enumerate(drawn)
    }
    return environment.get_template("report.html").render(
        tables=tables(results.results),
        specs={suite: json.dumps(spec).replace("</", "<\\/") for suite, spec in specs.items()},
        environment=environment_rows(results.environment),
        models=sorted({result.model for result in results.results}),
        bundle=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"),
    )


def render_markdown(results: ResultSet, chart_files: dict[str, list[str]]) -> str:
    """The same report for a repository; ``chart_files`` are pictures by suite."""
    models = ", ".join(sorted({result.model for result in results.results}))
    lines = [f"# Sentinel report: {models}", ""]
    for table in tables(results.results):
        lines += [f"## {table.title}", "", table.note, ""]
        for file in chart_files.get(table.suite, ()):
            lines += [f"![{table.title}]({file})", ""]
        lines += [to_markdown(table), ""]
    lines += ["## Environment", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in environment_rows(results.environment)]
    return "\n".join(lines) + "\n"


def write_report(results: ResultSet, folder: Path) -> None:
    """Write ``results.json``, ``report.html``, ``report.md`` and its pictures into ``folder``, each whole or not at all."""
    results.write(folder / "results.json")
    files: dict[str, list[str]] = {}
    for suite, drawn in charts(results.results).items():
        files[suite] = [f"{suite}-{number}.svg" for number in range(len(drawn))]
        for name, chart in zip(files[suite], drawn, strict=True):
            write_text(folder / name, chart_text(chart, ".svg"))
    write_text(folder / "report.md", render_markdown(results, files))
    write_text(folder / "report.html", render_html(results))
