"""``sentinel adapt`` from the command line, its film, and its comparison with one-shot pruning."""

from __future__ import annotations

import json
import math

import pytest
from helpers import refused

from sentinel.adapt.cycles.adaptation import read_adaptation
from sentinel.adapt.cycles.comparison import Comparison, Trial
from sentinel.adapt.cycles.controller import Controller
from sentinel.cli import main
from sentinel.formats.checkpoint import load_checkpoint
from sentinel.report.film import film

QUICK = ["--steps", "2", "--batch", "2", "--tokens", "1024", "--held-out-tokens", "128", "--calibration-tokens", "256"]


def arguments_of(worded, letters, *more: str) -> list[str]:
    return ["adapt", worded, "--text", letters["calibration"], "--expand-kv", *QUICK, *more]


def test_an_interrupted_run_is_resumed_and_drawn(worded, letters, tmp_path, capsys, monkeypatch):
    out, chart = tmp_path / "adapted", tmp_path / "film.html"
    command = arguments_of(worded, letters, "-o", str(out), "--budget", "0.5", "--cycles", "2", "--patience", "2")
    real = Controller.cycle

    def interrupted(self):
        if self.record.cycles:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Controller, "cycle", interrupted)
    assert main(command) == 130
    monkeypatch.undo()
    assert load_checkpoint(out).spec.n_head_total == 9  # the best so far can be used already
    capsys.readouterr()
    assert "add --resume" in refused(capsys, *command)
    assert "had boost 3.0, not 2.0" in refused(capsys, *command, "--resume", "--boost", "2", "-q")
    assert main([*command, "--resume", "--chart", str(chart)]) == 0
    assert "(kept)" in capsys.readouterr().out
    record = read_adaptation(out)
    assert len(record.cycles) == 2 and record.stopped == "all cycles done"
    assert load_checkpoint(out).spec.n_head_total == record.best.heads == 9
    assert not (tmp_path / "adapted.state").exists()
    assert "vegaEmbed" in chart.read_text() and '"bind"' in chart.read_text()
    assert "no interrupted run" in refused(capsys, *command, "--resume")
    assert "trained on" in refused(capsys, "evaluate", str(out), "--text", letters["calibration"], "--context", "16")


def test_the_film_shows_every_head_in_every_cycle(worded, letters, tmp_path, capsys):
    out = tmp_path / "adapted"
    command = arguments_of(worded, letters, "-o", str(out), "--budget", "0.6", "--cycles", "2", "--patience", "2")
    assert main([*command, "--chart", str(tmp_path / "film.svg")]) == 0
    assert "<svg" in (tmp_path / "film.svg").read_text()
    record = read_adaptation(out)
    assert all(cycle.cost <= record.limit for cycle in record.cycles)
    drawn = film(record).to_dict()
    cells = drawn["vconcat"][0]["data"]["values"]
    assert len(cells) == 2 * 18
    for cycle in record.cycles:
        states = [cell["state"] for cell in cells if cell["cycle"] == cycle.number + 1]
        assert states.count("stays") + states.count("regrown") == cycle.heads
        assert states.count("regrown") == len(cycle.regrown)


def test_the_comparison_gives_both_the_same_budget_and_says_what_pays(worded, letters, tmp_path, capsys):
    out = tmp_path / "compared"
    command = arguments_of(
        worded, letters, "-o", str(out), "--budget", "0.5", "--cycles", "1", "--judge", letters["test"]
    )
    assert main([*command, "--judge-tokens", "200", "--compare-one-shot", "0,1"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "comparison.json").read_text())
    assert [trial["seed"] for trial in found["trials"]] == [0, 1]
    assert all(trial["heads"] == 9 and trial["one_shot_updates"] > 0 for trial in found["trials"])
    assert found["verdict"] in printed


def trial(controller: float, one_shot: float) -> Trial:
    return Trial(0, controller, one_shot, 1.0, 1.0, 1, 1, 9, 1)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([(2.0, 2.1), (2.0, 2.11), (2.0, 2.09)], "The controller pays"),
        ([(2.1, 2.0), (2.11, 2.0), (2.09, 2.0)], "does not pay: perplexity is worse"),
        ([(2.1, 2.0), (2.0, 2.1), (2.0, 2.0)], "does not pay: no difference"),
        ([(2.0, 2.1)], "one seed can't tell"),
        ([(2.0, 2.1), (2.0, 2.1)], "2 seeds can't tell"),
    ],
)
def test_the_verdict_follows_from_the_interval(pairs, said):
    found = Comparison("0.5", "text", tuple(trial(*pair) for pair in pairs))
    assert said in found.verdict
    mean, low, high = found.difference
    assert mean == pytest.approx(sum(math.log(a / b) for a, b in pairs) / len(pairs))
    assert (low is None and high is None) if len(pairs) < 3 else low <= mean <= high


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("400kB", "not understood"),
        ("1.5", "out of range"),
        ("900MB", "not below the unpruned"),
        ("0.01MB", "below the floor"),
        ("100000x", "below the floor"),
    ],
)
def test_budgets_out_of_reach_are_refused(budget, said, worded, letters, tmp_path, capsys):
    command = arguments_of(worded, letters, "-o", str(tmp_path / "new"), "--budget", budget, "-q")
    assert said in refused(capsys, *command)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--text", "SHORT"], "too short"),
        (["--tokens", "100"], "fewer than the calibration needs"),
        (["--overshoot", "1"], "overshoot"),
        (["--chart", "film.png"], ".html or .svg"),
        (["--resume"], "no interrupted run"),
        (["--train", "nothing"], "not known"),
    ],
)
def test_other_bad_input_is_refused(more, said, worded, letters, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("a b c")
    more = [str(tmp_path / "short.txt") if word == "SHORT" else word for word in more]
    command = arguments_of(worded, letters, "-o", str(tmp_path / "new"), "--budget", "0.5", "-q", *more)
    assert said in refused(capsys, *command)
    assert not (tmp_path / "new").exists()
