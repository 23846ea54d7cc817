"""Recommendations on hand-made results, and presets."""

from __future__ import annotations

import json
from dataclasses import astuple, replace

import pytest
from conftest import spec_of
from helpers import filled_decoder
from synthetic_results import PLACE, TEXT, all_results, quality, row, speed

from sentinel.cli import build_parser, main
from sentinel.commands import presets
from sentinel.commands.engine import chosen_engine
from sentinel.commands.presets import Preset, load_preset, save_preset
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.measure.results import Result, ResultSet
from sentinel.models.record import Pruned, Record
from sentinel.report.candidates import candidates, frontier, perplexity_ratios
from sentinel.report.recommend import Demand, recommend


def chosen(rows: list[Result], need: str = "default", **limits) -> str | None:
    found = recommend(ResultSet(PLACE, rows), "m", Demand(need, **limits))
    return None if found.chosen is None else found.chosen.name


INT8, DENSE2 = "level 3, int8", "level 2, fp32, not pruned"
HALF = "level 2, 50 % of heads removed"
ROWS = [
    speed(1, 6.0),
    speed(2, 4.0),
    speed(2, 3.0, 0.5),
    speed(3, 1.5, precision="int8"),
    speed(3, 1.0, precision="int4"),
]
QUALITY = [quality(0.0, 1.0), quality(0.5, 1.2), quality(0.0, 1.004, "int8"), quality(0.0, 1.2, "int4")]


def test_each_need_has_its_rule():
    rows = ROWS + QUALITY
    assert chosen(rows) == INT8
    assert chosen(rows, "latency") == "level 3, int4"
    assert chosen(rows, "quality") == DENSE2
    assert chosen(rows, "memory") == "level 3, int4"


def test_limits_are_kept():
    rows = ROWS + QUALITY
    assert chosen(rows, "latency", max_perplexity_increase=0.1) == INT8
    assert chosen(rows, "memory", max_perplexity_increase=0.001) == DENSE2
    assert chosen(rows, "quality", min_tokens_per_s=2000.0) == INT8
    peaks = [replace(r, peak_memory_mb=mb) for r, mb in zip(ROWS, (900.0, 700.0, 650.0, 300.0, None), strict=True)]
    assert chosen(peaks + QUALITY, "latency", max_memory_mb=500.0) == INT8  # int4's peak is not known
    assert chosen(peaks + QUALITY, "quality", max_memory_mb=680.0) == INT8
    found = recommend(ResultSet(PLACE, rows), "m", Demand("quality", min_tokens_per_s=1e6))
    assert found.chosen is None and not found.commands
    assert "Nothing that was measured has at least 1e+06 tokens/s" in found.reason and "nearest is" in found.reason


def test_the_frontier_holds_what_nothing_beats():
    found = candidates([*ROWS, *QUALITY, speed(1, 3.5, 0.7), quality(0.7, 1.9)])
    names = [c.name for c in frontier(found)]
    assert "level 1, fp32, not pruned" not in names  # level 2 computes the same, faster
    assert "level 1, 70 % of heads removed" not in names
    assert names[-1] == "level 3, int4" and DENSE2 in names and INT8 in names


def test_ties_go_to_quality_and_then_to_speed():
    close = [speed(2, 4.0), speed(2, 3.95, 0.5), quality(0.5, 1.03)]
    assert chosen(close) == DENSE2  # 1 % of speed is not worth 3 % of perplexity
    assert chosen([speed(2, 4.0), speed(2, 3.0, 0.5), quality(0.5, 1.03)]) == HALF
    equal = [speed(2, 4.0), speed(3, 2.0, precision="int8"), quality(0.0, 1.0005, "int8")]
    assert chosen(equal, "quality") == INT8  # perplexities that can't be told apart: the faster one


def test_rows_are_joined_only_when_they_are_of_one_configuration():
    other = [replace(quality(0.5, 1.02), parameters=700)]  # half of the heads of a model of another size
    assert chosen([speed(2, 4.0), speed(2, 3.0, 0.5), *other]) == DENSE2
    neurons = speed(2, 1.0, 0.5, neurons_pruned=0.5)
    found = recommend(ResultSet(PLACE, [speed(2, 4.0), neurons, quality(0.5, 1.01)]), "m", Demand())
    assert found.chosen is not None and found.chosen.name == DENSE2
    said = " ".join(found.missing)
    assert "No perplexity was measured for 50 % of heads removed, 50 % of neurons removed" in said
    assert "No speed was measured for 50 % of heads removed:" in said
    long = speed(2, 0.1, prompt_tokens=2048)  # another workload
    assert candidates([*ROWS, long])[0].tokens_per_s < 1e4
    assert all(c.tokens_per_s < 2e4 for c in candidates([*ROWS, long]))
    timed = replace(quality(0.5, 1.9), tokens_per_s=5.0, tpot_ms=200.0, prompt_tokens=8, batch=1)
    many = [replace(timed, criterion=f"c{number}") for number in range(len(ROWS) + 1)]  # more rows, lower preference
    assert chosen([*ROWS, *QUALITY, *many]) == INT8


def test_compensated_models_are_judged_first():
    rows = [speed(2, 4.0), speed(2, 3.0, 0.5), quality(0.5, 1.02, compensated=False), quality(0.5, 1.04)]
    found = recommend(ResultSet(PLACE, rows), "m", Demand())
    assert found.chosen is not None and found.chosen.perplexity_ratio == 1.04
    assert found.commands[0] == "sentinel prune m -o m-elastic --elastic 0.5 --criterion fisher"
    grouped = ResultSet(PLACE, rows, {"pruning": {"expand_kv": True}})
    assert recommend(grouped, "m", Demand()).commands[0].endswith(" --expand-kv")
    for text, option in (("self", "fisher"), ("built-in", "fisher --calibration built-in"), ("a b", "'a b'")):
        named = ResultSet(PLACE, rows, {"quality": {"calibration": text}})
        assert recommend(named, "m", Demand()).commands[0].endswith(f" {option}")
    assert found.commands[1] == 'sentinel generate m-elastic "PROMPT" --level 2 --heads 0.5'


def test_a_perplexity_without_a_ratio_is_compared_on_the_same_text_only():
    dense, other = (replace(quality(0.0, 1.0), perplexity_ratio=None, perplexity=p) for p in (20.0, 10.0))
    half = replace(quality(0.5, 1.0), perplexity_ratio=None, perplexity=25.0)
    other = replace(other, text="news")
    same = {r.heads_pruned: ratio for r, ratio in perplexity_ratios([other, dense, half]) if r.text == TEXT["text"]}
    assert same == {0.0: 1.0, 0.5: 1.25}
    assert [r.text for r, _ in perplexity_ratios([other, half])] == ["news"]


def test_what_the_results_do_not_hold_is_said():
    speeds = ResultSet(PLACE, ROWS)
    with pytest.raises(InputError, match="no perplexity of m; measure it with 'sentinel bench quality m'"):
        recommend(speeds, "m", Demand("quality"))
    with pytest.raises(InputError, match="no peak memory of m"):
        recommend(speeds, "m", Demand(max_memory_mb=100.0))
    with pytest.raises(InputError, match="no measurement of gpt2, only of m"):
        recommend(speeds, "gpt2", Demand())
    with pytest.raises(InputError, match="no speed of m"):
        recommend(ResultSet(PLACE, QUALITY), "m", Demand())
    found = recommend(speeds, "m", Demand())
    assert found.chosen is not None and found.chosen.name == DENSE2
    assert any("No perplexity was measured for" in said and "int8" in said for said in found.missing)


@pytest.fixture
def measured(tmp_path, monkeypatch) -> str:
    """Results of a model "m" in a file; presets go beside the temporary folder's cache."""
    monkeypatch.setenv("SENTINEL_CACHE", str(tmp_path / "cache"))
    all_results().write(tmp_path / "r.json")
    return str(tmp_path / "r.json")


def test_the_command_tells_and_saves(measured, tmp_path, capsys):
    out = tmp_path / "c.json"
    assert main(["recommend", "m", "--from", measured, "--save", "fast", "--json", str(out), "-q"]) == 0
    said = capsys.readouterr().out
    assert "level 3, int8 is the fastest" in said and "original report" in said and "+20.0 %" in said
    body = json.loads(out.read_text())
    assert body["chosen"]["precision"] == "int8" and body["chosen"]["perplexity_ratio"] == 1.004
    preset = load_preset("fast")
    assert (preset.model, preset.level, preset.precision, preset.heads) == ("m", 3, "int8", 0.0)
    assert presets.presets_folder().parent == tmp_path


def failing(capsys, *arguments: str) -> str:
    try:
        code = main(list(arguments))
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("sentinel:")]) == 1
    return lines[-1]


def test_bad_demands_are_one_sentence(measured, tmp_path, monkeypatch, capsys):
    def told(*more: str) -> str:
        return failing(capsys, "recommend", "m", "--from", measured, *more)

    assert "nothing that was measured has" in told("--min-tokens-per-s", "1e9", "--save", "x")
    assert not presets.presets_folder().exists()
    assert "not a preset's name" in told("--save", "../x")
    assert "not above 0" in told("--max-memory", "-5")
    assert "below 0" in told("--max-perplexity-increase=-3%")
    monkeypatch.chdir(tmp_path)
    assert "run 'sentinel report' first" in failing(capsys, "recommend", "m")


def test_presets_round_trip_and_refuse(measured, tmp_path, capsys):
    preset = Preset("m", 2, "fp32", 0.5, 0.0, "why")
    path = save_preset("half", preset)
    assert load_preset("half") == preset and [p.name for p in path.parent.iterdir()] == ["half.json"]
    folder = tmp_path / "tiny"
    save_checkpoint(filled_decoder(spec_of("gpt2")), folder, None, Record())
    assert "no preset 'full'; stored are half" in failing(capsys, "generate", str(folder), "a", "--preset", "full")
    assert "is of m, not of" in failing(capsys, "generate", str(folder), "a", "--preset", "half")
    path.write_text(path.read_text().replace('"level": 2', '"level": "two"'))
    assert "is not a preset" in failing(capsys, "generate", str(folder), "a", "--preset", "half")
    path.write_text("{")
    assert "is not a preset" in failing(capsys, "generate", str(folder), "a", "--preset", "half")


def filled_in(model: str, *arguments: str) -> tuple[int | None, str | None, float | None, float | None]:
    """Level, precision, heads and neurons of `generate` after its preset was applied."""
    options = build_parser("generate").parse_args(["generate", model, "a", *arguments])
    return astuple(presets.with_preset(chosen_engine(options), "p", model))


def test_explicit_flags_win_over_a_preset(measured, tmp_path):
    save_preset("p", Preset("m", 3, "int8", 0.5, 0.0, "why"))
    assert filled_in("m") == (3, "int8", 0.5, 0.0)
    assert filled_in("m", "--precision", "int4") == (3, "int4", 0.5, 0.0)
    assert filled_in("m", "--level", "1") == (1, None, 0.5, 0.0)
    assert filled_in("m", "--heads", "0.3") == (3, "int8", 0.3, None)


def test_a_preset_fits_what_was_pruned_of_its_model(measured, tmp_path):
    save_preset("p", Preset("m", 2, "fp32", 0.5, 0.0, "why"))
    pruned = Record().then(Pruned(source="m", criterion="fisher", heads=(0.5,), neurons=(0.0,)))
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "half", None, pruned)
    assert filled_in(str(tmp_path / "half")) == (2, None, None, None)  # it is pruned so for good
    pruned = Record().then(Pruned(source="m", criterion="fisher", heads=(0.3,), neurons=(0.0,)))
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "less", None, pruned)
    assert filled_in(str(tmp_path / "less")) == (2, None, 0.5, 0.0)


def test_reference_engines_are_never_chosen():
    rows = [row("hf-generate", (0.1, 0.1, 0.1), suite="pruning"), *ROWS, *QUALITY]
    assert chosen(rows) == INT8


def test_int4_is_recommended_as_it_was_judged():
    found = recommend(ResultSet(PLACE, ROWS + QUALITY), "m", Demand("latency"))
    assert found.chosen is not None and found.chosen.name == "level 3, int4"
    assert found.commands == [
        "sentinel quantize m -o m-int4 --precision int4",
        'sentinel generate m-int4 "PROMPT"',
    ]
