"""One command that searches precisions and widths: what it writes, what it keeps, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import sentinel
from sentinel.api import search
from sentinel.cli import build_parser, main
from sentinel.errors import InputError
from sentinel.measure.decode_speed import DecodeSpeed
from sentinel.measure.results import Result, ResultSet
from sentinel.report.optimized import Kinds, conclude, tables_of
from sentinel.report.recommend import Demand

KINDS = Kinds(("a", "c"), ("b",))


def kind(ratio: float) -> dict[str, float]:
    return {"perplexity_ratio": ratio, "perplexity_ratio_stderr": 0.01, "tokens": 64}


def row(name: str, speed: float, choose: float, tell: float, heads: float = 0.0, *, timed: bool = True) -> Result:
    return Result(
        suite="optimize", model="m", weights="real", engine=name, level=3, precision=name[:4], heads_pruned=heads,
        neurons_pruned=0.0, tokens_per_s=speed, tpot_ms=1e3 / speed, weight_bytes_per_token=round(1e9 / speed),
        samples=[{"total_ms": 1.0}] if timed else [], by_kind={"a": kind(choose), "b": kind(tell), "c": kind(choose)},
    )  # fmt: skip


WHOLE = [row("int8", 100.0, 1.0, 1.0), row("int4", 150.0, 1.08, 1.0)]


def test_the_choice_goes_by_the_kinds_that_choose_and_tells_of_the_others():
    made = conclude(WHOLE, KINDS, Demand(max_perplexity_increase=0.05), "out")
    assert made.chosen is not None and made.chosen.speed.engine == "int8"
    assert "1.000x ± 0.010" in made.reason and "Nothing pruned pays" in made.reason
    made = conclude([*WHOLE, row("int8-0.2-0", 120.0, 1.04, 1.2, 0.2)], KINDS, Demand(), "out")
    assert made.chosen is not None and made.chosen.shape.heads == 20
    assert "Pruning pays" in made.reason and "1.200x ± 0.010" in made.reason and "beyond the limit" in made.reason


def test_what_was_not_timed_is_not_chosen_and_a_goal_that_nothing_meets_names_the_nearest():
    fast = row("int8-0.2-0", 500.0, 1.0, 1.0, 0.2, timed=False)
    made = conclude([*WHOLE, fast], KINDS, Demand(), "out")
    assert made.chosen is not None and made.chosen.speed.engine == "int8"
    assert tables_of([*WHOLE, fast], KINDS, made)[0].rows[-1][:2] == ["int8 20/0 %", "500.0 (predicted)"]
    made = conclude(WHOLE, KINDS, Demand(min_tokens_per_s=1000.0), "out")
    assert made.chosen is None and "nearest is level 3, int4" in made.reason


def test_speeds_are_bytes_over_bandwidth_times_what_neighbours_took():
    sizes = {("int8", (0.0, 0.0)): 200, ("int8", (0.1, 0.0)): 150, ("int8", (0.2, 0.0)): 100}
    speed = DecodeSpeed(100.0, sizes, {"int8": ([100.0, 200.0], [3.0, 2.0])})
    told = [speed.tokens_per_s("int8", width) for _, width in sizes]
    assert told == pytest.approx([1e3 / (2 * 2), 1e3 / (1.5 * 2.5), 1e3 / (1 * 3)])


@pytest.fixture
def asked(letters, tmp_path, monkeypatch) -> dict[str, object]:
    """A quick search of the tiny model: another text chooses than tells."""
    rng = np.random.default_rng(1)
    other = tmp_path / "other.txt"
    other.write_text(" ".join(rng.choice(list("abcdefghijklmnop"), 300)))
    monkeypatch.setattr(search, "measure_peak_memory", lambda request: 100.0)
    return {
        "calibration": letters["calibration"], "calibration_tokens": 512, "text": f"{letters['test']},{other}",
        "eval_tokens": 128, "widths": ((0.0, 0.5),),
    }  # fmt: skip


def test_the_best_model_is_written_ready_to_run_and_nothing_else_is_left(worded, asked, tmp_path):
    found = sentinel.optimize(worded, tmp_path / "best", max_perplexity_increase=9.0, **asked)
    assert found.choice.chosen is not None
    assert found.model.quantised is not None and found.model.generate("a b", max_new_tokens=3)
    names = {row.engine for row in found.results.results}
    assert {"int8", "int4"} <= names
    page = (tmp_path / "best" / "optimize.html").read_text()
    assert "Speed against quality" in page and found.choice.commands[0].split('"')[0] in page
    rows = ResultSet.read(tmp_path / "best" / "optimize.json").results
    assert all(len(row.by_kind) == 2 for row in rows) and any(row.samples for row in rows)
    assert not (tmp_path / "best.search").exists()
    with pytest.raises(InputError, match="is not empty"):
        sentinel.optimize(worded, tmp_path / "best", **asked)


def test_what_was_found_before_an_interruption_is_not_made_again(worded, asked, tmp_path, monkeypatch):
    timing = search.Search._time_finalists
    monkeypatch.setattr(search.Search, "_faster_widths", lambda self: [(0.0, 0.5)])  # whatever is predicted of it now
    monkeypatch.setattr(search.Search, "_time_finalists", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sentinel.optimize(worded, tmp_path / "best", **asked)
    kept = ResultSet.read(tmp_path / "best.search" / "results.json").results
    assert {"int8", "int4"} <= {row.engine for row in kept} and not (tmp_path / "best").exists()
    with pytest.raises(InputError, match="a search with another eval tokens"):
        sentinel.optimize(worded, tmp_path / "best", **{**asked, "eval_tokens": 64})
    monkeypatch.setattr(search.Search, "_time_finalists", timing)
    monkeypatch.setattr(search, "quantize", None)  # nothing is packed again
    found = sentinel.optimize(worded, tmp_path / "best", max_perplexity_increase=9.0, **asked)
    assert [row.engine for row in found.results.results] == [row.engine for row in kept]


def test_a_goal_out_of_reach_is_one_sentence_and_keeps_what_was_found(worded, asked, tmp_path, capsys):
    out = str(tmp_path / "best")
    options = [
        "--calibration", asked["calibration"], "--calibration-tokens", "512", "--text", asked["text"],
        "--eval-tokens", "128", "--widths", "0/0.5", "-o", out, "-q",
    ]  # fmt: skip
    assert main(["optimize", worded, *options, "--min-tokens-per-s", "1e9"]) == 2
    said = capsys.readouterr().err
    assert "nearest is level 3" in said and len(said.strip().splitlines()) == 1 and Path(f"{out}.search").is_dir()
    assert main(["optimize", worded, *options, "--max-perplexity-increase", "90%"]) == 0
    assert "tokens/s" in capsys.readouterr().out
    assert json.loads(Path(out, "optimize.json").read_text())["runs"]["optimize"]["eval_tokens"] == 128
    one = [*options[:5], asked["text"].split(",")[0], *options[6:-3], "-o", str(tmp_path / "one"), "-q"]
    assert main(["optimize", worded, *one]) == 2
    assert "can't both choose and judge" in capsys.readouterr().err


def test_arguments():
    parse = build_parser("optimize").parse_args
    for text in ("5%", "0.05"):
        assert parse(["optimize", "m", "-o", "x", "--max-perplexity-increase", text]).max_perplexity_increase == 0.05
    for bad in ("0.2", "0/0", "0/0.1,0/0.1", "2/0"):
        with pytest.raises(SystemExit):
            parse(["optimize", "m", "-o", "x", "--widths", bad])
