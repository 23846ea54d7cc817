"""The report as a page and as Markdown: what it says of whole and of partial results."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_results import PLACE, all_results, quality, row, speed

from sentinel.errors import InputError
from sentinel.measure.results import ResultSet
from sentinel.report.candidates import candidates
from sentinel.report.charts import charts
from sentinel.report.content import content_of
from sentinel.report.glossary import GLOSSARY, FirstUse
from sentinel.report.head_map import head_map
from sentinel.report.render import render_html, render_markdown, write_report
from sentinel.report.sections import section_of
from sentinel.report.tables import tables

SUITES_THERE = ("decode", "levels", "quality", "pruning", "context", "batch", "attention", "load")


def without(*suites: str) -> ResultSet:
    return ResultSet(PLACE, [r for r in all_results().results if r.suite not in suites])


def test_the_order_of_a_report_frontier_first():
    page = re.sub(r"(?s)<script.*?</script>|<nav>.*?</nav>", "", render_html(all_results()))
    order = re.findall(r'<section id="(\w+)">', page)
    assert order[:2] == ["frontier", "recommendations"] and order[-3:] == ["method", "words", "environment"]
    assert set(order[2:-4]) >= set(SUITES_THERE)
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
    rows = [speed(3, 1.5, heads, "int8", step_bytes=size) for heads, size in ((0.0, 500), (0.3, 520))]
    rows += [speed(3, 1.5, 0.5, "int8", step_bytes=480), speed(2, 3.0, 0.5, step_bytes=900)]
    rows += [speed(3, 1.5, 0.5, "int8", neurons_pruned=0.5, step_bytes=600)]
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
const wait = () => document.documentElement.dataset.drawn ? setTimeout(report, 100) : setTimeout(wait, 50);
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
function light(colour) {
  const [r, g, b] = numbers(colour).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(one, other) {
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
const told = (marks) => marks.map((m) => m.closest(".chart").dataset.chart + " " + m.textContent).join("; ");
function report() {
  const root = document.documentElement, ground = getComputedStyle(document.body).backgroundColor;
  const all = (what) => [...document.querySelectorAll(what)];
  const faint = (mark, least) => {
    const style = getComputedStyle(mark);
    const seen = [style.fill, style.stroke].filter((c) => c.startsWith("rgb") && numbers(c)[3] !== 0);
    const clear = [style.opacity, style.fillOpacity, style.strokeOpacity].every((o) => Number(o) === 1);
    return style.opacity !== "0" && seen.length && !(clear && Math.max(...seen.map((c) => contrast(c, ground))) >= least);
  };
  const cut = (text) => {
    const [mine, whole] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
    return mine.width && (mine.left < whole.left - 1 || mine.right > whole.right + 1);
  };
  const uncued = (box) => box.scrollWidth > box.clientWidth + 1 &&
    !(box.parentElement.dataset.more && box.parentElement.querySelector(".cue").getBoundingClientRect().height);
  root.dataset.overflow = root.scrollWidth - root.clientWidth;
  root.dataset.requests = performance.getEntriesByType("resource").map((e) => e.name).join(" ");
  root.dataset.wide = all(".chart").filter((p) => p.scrollWidth > p.clientWidth + 1).map((p) => p.dataset.chart).join(" ");
  root.dataset.empty = all(".chart").filter((p) => p.querySelectorAll("svg path, svg line").length < 5).length;
  root.dataset.scrolling = all(".framed[data-more]").length;
  root.dataset.uncued = all(".scroll").filter(uncued).map((box) => box.innerText.slice(0, 40)).join("; ");
  root.dataset.cut = told(all(".chart text").filter(cut));
  root.dataset.faint = told([
    ...all(".chart text").filter((text) => faint(text, 4.5)),
    ...all(".chart .role-legend-symbol path").filter((symbol) => faint(symbol, 3)),
  ]);
  root.dataset.dark = matchMedia("(prefers-color-scheme: dark)").matches;
}
wait();
</script>"""


def opened(page: Path, tmp_path: Path, width: int, scheme: str) -> tuple[str, str]:
    """The page's markup after it was drawn in headless Chromium, and its log."""
    probed = tmp_path / "probed.html"
    before, end, after = page.read_text().rpartition("</body>")  # the script has others in strings
    probed.write_text(before + PROBE + end + after)
    # Headless windows are at least 500 pixels wide, so that a phone's width is that of a frame.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe id="f" src="probed.html" width="{width}" height="900" style="border:0"></iframe><script>'
        "const look = () => { const root = f.contentDocument && f.contentDocument.documentElement; "
        "root && root.dataset.dark !== undefined ? ("
        "document.documentElement.dataset.seen = JSON.stringify(root.dataset),"
        ' document.documentElement.dataset.charts = root.querySelectorAll("svg.marks").length) : setTimeout(look, 50) };'
        " look()</script>"
    )
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,1000",
        "--virtual-time-budget=20000", "--dump-dom", f"file://{frame}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout, done.stderr


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "light"), (1200, "dark")])
def test_the_page_in_a_browser(width, scheme, tmp_path):
    write_report(all_results(), tmp_path)
    drawn = {p.stem for p in tmp_path.glob("*.svg")}
    assert {p.name for p in tmp_path.iterdir()} >= {"report.html", "report.md", "results.json", "frontier-0.svg"}
    markup, log = opened(tmp_path / "report.html", tmp_path, width, scheme)
    assert "CONSOLE" not in log, log
    assert f'data-charts="{len(drawn)}"' in markup
    found = re.search(r'data-seen="([^"]*)"', markup)
    assert found is not None, markup[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["drawn"] == "true" and seen["dark"] == ("true" if scheme == "dark" else "false")
    assert seen["overflow"] == seen["empty"] == "0"
    for nothing in ("requests", "wide", "uncued", "cut", "faint"):
        assert not seen[nothing], (nothing, seen[nothing])
    assert width > 390 or int(seen["scrolling"]) > 3  # the cues were put to the test


def test_axes_of_sizes_have_ticks_where_was_measured():
    drawn = {suite: chart.to_dict() for suite, (chart, *_) in charts(all_results().results).items()}
    assert drawn["batch"]["encoding"]["x"]["axis"]["values"] == [1, 4, 16]
    for suite, lengths in (("context", [64, 1000]), ("attention", [32, 512])):
        axes = [layer["encoding"]["x"]["axis"]["values"] for layer in drawn[suite]["layer"]]
        assert axes == [lengths] * len(axes)


def test_every_section_begins_with_its_finding():
    found = {table.suite: table.finding for table in content_of(all_results()).sections}
    assert set(found) == set(SUITES_THERE)
    assert found["decode"] == (
        "Level 3 int8 is the fastest: 4,444.4 tokens/s, 7.00x Hugging Face generate(), with 300 MB at its peak."
    )
    assert "+3.0 % without 30 % of the heads" in found["quality"] and "criterion fisher" in found["quality"]
    assert "without 70 % of its heads it runs at 1.18x" in found["pruning"]
    assert "of 16 sequences, 4.00x those of 1" in found["batch"]
    assert "decodes 3.00x after 64 tokens" in found["context"]
    page = re.sub(r"(?s)<script.*?</script>", "", render_html(all_results()))
    for table in content_of(all_results()).sections:
        body = re.search(rf'(?s)<section id="{table.suite}">(.*?)</section>', page)
        assert body and "finding" in body[1].split("</h2>")[1][:30]
    assert found["decode"] in render_markdown(all_results(), {})


def test_a_finding_follows_the_rows():
    dense = [quality(0.0, 1.0), quality(0.0, 1.004, "int8", perplexity_ratio_stderr=0.002)]
    (table,) = tables(dense)
    assert table.finding == "Not pruned, perplexity changes by +0.4 % (± 0.2) with int8 weights."
    slower = [row("hf-generate"), replace(speed(1, 10.5), suite="decode", speedup_low=0.9, speedup_high=1.1)]
    assert "as fast as Hugging Face generate()" in tables(slower)[0].finding
    assert tables([row("hf-generate")])[0].finding.startswith("Nothing to compare")


def test_a_speed_up_names_its_reference_once():
    for table in content_of(all_results()).sections:
        named = [column for column in table.columns if column.startswith("speed-up")]
        assert len(named) <= 1 and "speed-up over" not in table.note.replace("speed-ups", "")
    names = {table.suite: table.columns for table in content_of(all_results()).sections}
    assert "speed-up over Hugging Face generate()" in names["levels"]
    assert "speed-up over head by head (level 0)" in names["attention"]
    assert "speed-up over the same level, not pruned" in names["context"]


def test_masked_heads_are_never_called_removed():
    rows = [speed(0, 6.0, 0.5), speed(1, 3.0, 0.5)]
    (table,) = tables(rows)
    assert [line[1] for line in table.rows] == ["50 % (masked)", "50 %"]
    assert [c.name for c in candidates(rows)] == ["level 0, 50 % of heads masked", "level 1, 50 % of heads removed"]
    said = render_markdown(all_results(), {})
    assert "attention-original" not in said and "original report is that of" in said


def test_unknown_errors_and_intervals_are_dashes():
    unknown = replace(quality(0.5, 1.2), perplexity_stderr=None)
    (table,) = tables([unknown, replace(speed(1, 6.0), suite="quality")])
    assert "24.00 ± –" in table.rows[0] and "1.200x ± –" in table.rows[0]
    (table,) = tables([replace(speed(1, 6.0), speedup_low=None, speedup_high=None)])
    assert table.rows[0][-1] == "1.75x (–)"


def test_every_word_is_explained_where_it_is_first_met_and_once():
    page = re.sub(r"(?s)<script.*?</script>", "", render_html(all_results()))
    marked = re.findall(r'<abbr title="[^"]*">([^<]*)</abbr>', page)
    assert len(marked) == len(set(marked)) and set(marked) >= {"TTFT", "TPOT", "MBU", "MB", "roofline", "perplexity"}
    assert page.count("<dt>") == len(GLOSSARY)
    assert str(FirstUse()("5 MB/s & TTFTs, TTFT")) == (
        f'5 <abbr title="{GLOSSARY["MB"]}">MB</abbr>/s &amp; TTFTs, '
        f'<abbr title="{html.escape(GLOSSARY["TTFT"], quote=False).replace(chr(39), "&#39;")}">TTFT</abbr>'
    )


def test_paper_is_light_and_keeps_notes_with_their_charts():
    page = render_html(all_results())
    style = page[page.index("@media print") : page.index("</style>")]
    assert "--bg: #fff" in style and re.search(r"\.keep[^{]*{ break-inside: avoid; }", style)
    kept = re.findall(r'(?s)<div class="keep">.*?</div>\s*</div>', page)
    assert all("<h2>" in part and "<p" in part for part in kept) and any('class="chart"' in part for part in kept)
