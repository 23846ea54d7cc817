"""The report as a page and as Markdown: what it says of whole and of partial results."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from synthetic_results import PLACE, all_results, quality, row, speed

from sentinel.errors import InputError
from sentinel.measure.results import ResultSet
from sentinel.report.charts import charts
from sentinel.report.content import content_of
from sentinel.report.head_map import head_map
from sentinel.report.render import render_html, render_markdown, write_report
from sentinel.report.sections import section_of

SUITES_THERE = ("decode", "levels", "quality", "pruning", "context", "batch", "attention", "load")


def without(*suites: str) -> ResultSet:
    return ResultSet(PLACE, [r for r in all_results().results if r.suite not in suites])


def test_the_order_of_a_report_frontier_first():
    page = re.sub(r"(?s)<script.*?</script>|<nav>.*?</nav>", "", render_html(all_results()))
    order = re.findall(r'<section id="(\w+)">', page)
    assert order[:2] == ["frontier", "recommendations"] and order[-2:] == ["method", "environment"]
    assert set(order[2:-3]) >= set(SUITES_THERE)
    text = render_markdown(all_results(), {"frontier": ["frontier-0.svg"]})
    assert text.index("frontier-0.svg") < text.index("## Recommendations") < text.index("## Optimisation levels")
    assert "sentinel generate m" in page and "sentinel generate m" in text


def test_every_suite_has_a_table_and_a_chart():
    content = content_of(all_results())
    assert {table.suite for table in content.sections} == set(SUITES_THERE) == set(content.charts)
    for table in content.sections:
        assert table.rows and all(len(cells) == len(table.columns) for cells in table.rows)
        assert all(any(cells[i] != "–" for cells in table.rows) for i in range(len(table.columns)))


def test_partial_results_name_what_is_missing():
    said = " ".join(content_of(without("quality", "attention")).missing)
    assert "Suite quality was not run" in said and "Suite attention was not run" in said
    assert "No perplexity was measured for" in said
    page = render_html(without("quality"))
    assert 'id="frontier"' not in page and 'id="missing"' in page
    only = content_of(without("decode", "levels", "pruning", "context", "batch", "load"))
    assert only.lead is None and only.recommendations is None
    assert any("nothing can be recommended" in sentence for sentence in only.missing)
    assert not any("Suite decode" in sentence for sentence in content_of(without("quality")).missing)


@pytest.mark.parametrize("suite", SUITES_THERE)
def test_the_first_row_of_a_suite_alone_makes_a_report(suite):
    (first, *_) = (r for r in all_results().results if r.suite == suite)
    (table,) = content_of(ResultSet(PLACE, [first])).sections
    assert len(table.rows) == 1


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="hold no rows"):
        render_html(ResultSet(PLACE, []))


def test_notes_tell_where_fewer_heads_read_more_bytes():
    rows = [speed(3, 1.5, heads, "int8", roofline_tokens_per_s=limit) for heads, limit in ((0.0, 500.0), (0.3, 480.0))]
    rows += [speed(3, 1.5, 0.5, "int8", roofline_tokens_per_s=520.0), speed(2, 3.0, 0.5, roofline_tokens_per_s=90.0)]
    rows += [speed(3, 1.5, 0.5, "int8", neurons_pruned=0.5, roofline_tokens_per_s=400.0)]
    for suite in ("pruning", "levels", "context"):
        note = section_of(suite).note([dataclasses.replace(r, suite=suite) for r in rows])
        assert "Without 30 % of the heads a step can read more bytes" in note
        assert "read more bytes" not in section_of(suite).note(rows[:1] + rows[2:])


def test_settings_are_those_that_a_suite_reads():
    run = {
        "model": "m",
        "rounds": 6,
        "passes": 3,
        "heads": [0.0, 0.5],
        "expand_kv": False,
        "eval_tokens": 9,
        "criteria": [],
    }
    settings = dict(content_of(ResultSet(PLACE, [row("hf-generate")], {"levels": run, "sweep": run})).runs)
    assert settings["levels"] == "rounds 6; passes 3; heads 0, 0.5; expand kv False"
    assert "eval tokens 9" in settings["sweep"]  # no suite of the table


def test_a_suite_without_a_section_of_its_own_still_gets_a_table():
    (table,) = content_of(ResultSet(PLACE, [row("level 1", suite="thermal")])).sections
    assert table.title == "Thermal" and table.rows[0][0] == "level 1"


def test_the_head_map_shows_the_best_criterion():
    rows = [quality(0.5, 1.4), quality(0.5, 1.2, criterion="entropy"), quality(0.5, 1.1, compensated=False)]
    spec = charts(rows)["quality"][1].to_dict()
    assert "entropy" in spec["title"]["text"][0]
    assert spec["params"][0]["bind"]["options"] == [0.5]
    assert head_map([[0, 1], [2, 3]]).to_dict()["mark"]["type"] == "rect"
    assert len(charts([quality(0.0, 1.0)]).get("quality", [])) <= 1


def test_precisions_have_lines_of_their_own_in_the_quality_chart():
    spec = charts([quality(0.5, 1.2), quality(0.5, 1.3, "int8")])["quality"][0].to_dict()
    lines = {(r["kind"], r["share"]): r["perplexity over dense"] for r in spec["data"]["values"]}
    assert lines["compensated", 0.5] == 1.2 and lines["compensated, int8", 0.5] == 1.3


def test_frontier_chart_joins_what_nothing_beats():
    rows = [speed(1, 6.0), speed(2, 4.0), speed(3, 1.5, precision="int8"), speed(2, 3.9, 0.5), quality(0.5, 1.2)]
    rows += [quality(0.0, 1.0), quality(0.0, 1.01, "int8")]
    line, points, names = content_of(ResultSet(PLACE, rows)).frontier.to_dict()["layer"]
    assert [r["configuration"] for r in line["data"]["values"]] == ["level 2, fp32, not pruned", "level 3, int8"]
    assert len(points["data"]["values"]) == 4
    assert "default" in " ".join(r["label"] for r in names["data"]["values"])


PROBE = """<script type="module">
const wait = () => document.documentElement.dataset.drawn ? report() : setTimeout(wait, 50);
function report() {
  const root = document.documentElement;
  root.dataset.overflow = root.scrollWidth - root.clientWidth;
  root.dataset.requests = performance.getEntriesByType("resource").map((e) => e.name).join(" ");
  const places = [...document.querySelectorAll(".chart")];
  root.dataset.wide = places.filter((p) => p.scrollWidth > p.clientWidth + 1).map((p) => p.dataset.chart).join(" ");
  root.dataset.empty = places.filter((p) => p.querySelectorAll("svg path, svg line").length < 5).length;
}
wait();
</script>"""


def opened(page: Path, tmp_path: Path, width: int) -> tuple[str, str]:
    """The page's markup after it was drawn in headless Chromium, and its log."""
    probed = tmp_path / "probed.html"
    before, end, after = page.read_text().rpartition("</body>")  # the script has others in strings
    probed.write_text(before + PROBE + end + after)
    # Headless windows are at least 500 pixels wide, so that a phone's width is that of a frame.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe id="f" src="probed.html" width="{width}" height="900" style="border:0"></iframe><script>'
        "const look = () => { const root = f.contentDocument && f.contentDocument.documentElement; "
        "root && root.dataset.requests !== undefined ? ("
        "document.documentElement.dataset.seen = JSON.stringify(root.dataset),"
        ' document.documentElement.dataset.charts = root.querySelectorAll("svg.marks").length) : setTimeout(look, 50) };'
        " look()</script>"
    )
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,1000",
        "--virtual-time-budget=20000", "--dump-dom", f"file://{frame}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout, done.stderr


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_in_a_browser(width, tmp_path):
    write_report(all_results(), tmp_path)
    drawn = {p.stem for p in tmp_path.glob("*.svg")}
    assert {p.name for p in tmp_path.iterdir()} >= {"report.html", "report.md", "results.json", "frontier-0.svg"}
    markup, log = opened(tmp_path / "report.html", tmp_path, width)
    assert "CONSOLE" not in log, log
    assert "&quot;drawn&quot;:&quot;true&quot;" in markup, markup[:2000]
    assert f'data-charts="{len(drawn)}"' in markup
    for nothing in ("overflow", "empty"):
        assert f"&quot;{nothing}&quot;:&quot;0&quot;" in markup, (nothing, markup[-1500:])
    for nothing in ("requests", "wide"):
        assert f"&quot;{nothing}&quot;:&quot;&quot;" in markup, (nothing, markup[-1500:])
