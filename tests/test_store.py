"""Stored quality of a full run: what is kept of it, and where it stands beside measurements of here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from synthetic_results import PLACE, all_results, quality, speed

from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.measure.results import ResultSet
from sentinel.measure.suites import SUITES
from sentinel.report import store
from sentinel.report.candidates import candidates
from sentinel.report.content import content_of
from sentinel.report.render import render_html, render_markdown

RUN = {"model": "m", "weights": "real", "fingerprint": "abc", "expand_kv": True, "criteria": ["stepwise"]}
HERE = [speed(1, 6.0), speed(2, 4.0), speed(2, 3.0, 0.5), speed(3, 1.5, precision="int8"), speed(3, 1.2, 0.5, "int8")]


def full_run() -> ResultSet:
    there = replace(PLACE, cpu="another CPU", measured_at="2025-05-06T07:08:09+00:00", versions={"sentinel": "9.8"})
    rows = [*all_results().results, quality(0.5, 1.25, "int8")]
    return ResultSet(there, rows, {"quality": RUN, "pruning": RUN})


def quick(fingerprint: str = "abc", expand_kv: bool = True) -> ResultSet:
    """What a quick run measures: speeds, and the quality of what is not pruned."""
    rows = [*HERE, quality(0.0, 1.0), quality(0.0, 1.005, "int8")]
    run = {"model": "m", "fingerprint": fingerprint}
    plain = {**run, "expand_kv": False}  # what a suite that does not prune has by default
    return ResultSet(PLACE, rows, {"decode": plain, "pruning": {**run, "expand_kv": expand_kv}, "quality": run})


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Results of a full run, stored in a folder that takes the place of the package's."""
    full_run().write(tmp_path / "results.json")
    folder = tmp_path / "stored"
    path = store.store(tmp_path / "results.json", folder)
    monkeypatch.setattr(store, "FOLDER", folder)
    return path


def test_only_quality_is_stored_and_never_a_speed(stored):
    kept = ResultSet.read(stored)
    assert stored.name == "m.json" and stored.stat().st_size < 300_000
    assert {r.suite for r in kept.results} == {"quality"} and set(kept.runs) == {"quality"}
    for row in kept.results:
        assert row.perplexity and not row.samples and row.tokens_per_s is row.speedup is row.tpot_ms is row.mbu is None


@pytest.mark.parametrize("rows", [HERE, [*HERE, quality(0.0, 1.0)]])
def test_a_run_that_judged_nothing_pruned_is_not_stored(rows, tmp_path, capsys):
    ResultSet(PLACE, rows, {"quality": RUN}).write(tmp_path / "quick.json")
    assert store.main([str(tmp_path / "quick.json")]) == 2
    assert "no quality of pruned models" in capsys.readouterr().err


def test_stored_quality_is_joined_with_speeds_of_here_and_says_so(stored):
    joined = store.with_stored(quick(), store.FOLDER)
    found = {c.name: c for c in candidates(joined.results)}
    half, int8 = found["level 2, 50 % of heads removed"], found["level 3, int8"]
    assert half.is_stored and half.perplexity_ratio == 1.2 and half.tokens_per_s == HERE[2].tokens_per_s
    assert not int8.is_stored and int8.perplexity_ratio == 1.005  # judged here: the stored one says 1.004
    assert all(c.speed.suite != "stored" for c in found.values())


def test_the_report_names_the_stored_run(stored):
    content = content_of(quick())
    (section,) = [table for table in content.sections if table.suite == "stored"]
    for said in (
        "another CPU",
        "2025-05-06",
        "sentinel 9.8",
        "sentinel bench quality m --criteria stepwise --expand-kv",
    ):
        assert said in section.note
    assert "tokens/s" not in section.columns and "speed-up" not in " ".join(section.columns)
    cells = " ".join(cell for row in content.recommendations.rows for cell in row)
    assert "+20.0 % (stored)" in cells and "+0.5 % (stored)" not in cells
    assert 'id="stored"' in render_html(quick()) and "Not measured here" in render_markdown(quick(), {})
    assert "stored" not in dict(content.runs)


@pytest.mark.parametrize("results", [quick("another"), quick(expand_kv=False), ResultSet(PLACE, HERE), full_run()])
def test_other_weights_other_pruning_and_a_full_run_get_no_stored_rows(stored, results):
    assert store.with_stored(results, store.FOLDER) is results
    assert all(table.suite != "stored" for table in content_of(results).sections)


def test_nothing_stored_is_no_section(tmp_path):
    assert store.with_stored(quick(), tmp_path) is not quick()
    assert all(row.suite != "stored" for row in store.with_stored(quick(), tmp_path).results)


def test_recommend_tells_what_is_stored(stored, tmp_path, capsys):
    quick().write(tmp_path / "quick.json")
    wanted = ["recommend", "m", "--from", str(tmp_path / "quick.json"), "--max-perplexity-increase", "0.4"]
    assert main([*wanted, "--json", str(tmp_path / "choice.json")]) == 0
    said = capsys.readouterr().out
    assert "(stored)" in said and "another CPU" in said
    assert any(c["perplexity_is_stored"] for c in json.loads((tmp_path / "choice.json").read_text())["frontier"])


def test_the_command_of_a_run_names_what_differs_from_the_suites_own():
    own = {name: list(v) if isinstance(v, tuple) else v for name, v in SUITES["quality"].options.items()}
    assert store.command({**own, "model": "m"}) == "sentinel bench quality m"
    changed = {**own, "model": "m", "expand_kv": True, "heads": [0.3, 0.5], "calibration_tokens": 24576}
    wanted = "sentinel bench quality m --heads 0.3,0.5 --calibration-tokens 24576 --expand-kv"
    assert store.command(changed) == wanted


def test_what_ships_with_the_package_can_be_read():
    for file in store.FOLDER.glob("*.json"):
        kept = ResultSet.read(file)
        assert file.stat().st_size < 300_000 and kept.runs["quality"]["fingerprint"]
        with pytest.raises(InputError, match="no quality"):
            store.trimmed(ResultSet(kept.environment, [], kept.runs))
