"""Results files, statistics of speed, reports."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from synthetic_results import PLACE, row, samples

from sentinel.errors import InputError
from sentinel.measure.method import interleave
from sentinel.measure.results import SCHEMA, ResultSet, speedup
from sentinel.report.render import render_html, render_markdown

TIMES = {"hf-generate": (10.0, 11.0, 10.5), "level 1": (5.0, 5.1, 5.2), "level 0": (9.0, 12.0, 10.4)}


@pytest.fixture
def results():
    rows = [row(name, times, weights="random") for name, times in TIMES.items()]
    rows += [
        row(f"attention-{name}", (4.0, 4.1, 4.2), suite="attention", phase=phase, speedup_over="attention-original")
        for phase in ("decode", "prefill")
        for name in ("original", "optimised")
    ]
    return ResultSet(PLACE, rows)


def test_results_round_trip(results, tmp_path):
    results.write(tmp_path / "r.json")
    assert ResultSet.read(tmp_path / "r.json") == results
    data = json.loads((tmp_path / "r.json").read_text())
    assert set(data) == {"schema", "environment", "runs", "results"}
    assert len(data["results"][0]["samples"]) == 3


def test_speedup_is_a_ratio_of_medians_with_an_interval():
    rng = np.random.default_rng(0)
    slow, fast = samples(rng.normal(20, 0.5, 15)), samples(rng.normal(10, 0.5, 15))
    ratio = speedup(slow, fast, "total_ms")
    assert ratio.low < 2 < ratio.high and ratio.high - ratio.low < 0.3
    for bad in ([], samples([0.0] * 15), samples([float("nan")] * 15)):
        with pytest.raises(InputError, match="measure again"):
            speedup(slow, bad, "total_ms")
    same = speedup(slow, samples(rng.normal(20, 0.5, 15)), "total_ms")
    assert same.low <= 1 <= same.high


def test_a_row_that_is_not_faster_is_called_no_difference(results):
    text = render_markdown(results, {})
    assert re.search(r"\| level 0 .*no difference", text)
    assert re.search(r"\| level 1 .*2\.\d\dx", text)
    assert re.search(r"\| Hugging Face generate.*1 \(reference\)", text)
    assert "Weights are random" in text


def test_html_is_self_contained_and_escaped(results):
    page = render_html(results)
    assert "a &lt;CPU&gt;" in page
    markup = re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", page)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", markup)


def test_rows_of_several_passes_are_read_as_they_were(tmp_path):
    """Samples of two or three passes, as many of each."""
    for passes, times in ((1, (10.0, 11.0)), (2, (10.0, 11.0)), (3, (10.0, 11.0, 12.0) * 2)):
        one = row("level 1", times, times, passes=passes)
        made = ResultSet(PLACE, [one])
        path = tmp_path / f"{passes}.json"
        path.write_text(made.to_json())
        (read,) = ResultSet.read(path).results
        assert (read.passes, len(read.samples)) == (passes, len(times))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: {**d, "schema": "sentinel-results/0"}, "schema 'sentinel-results/0'"),
        (lambda d: {k: v for k, v in d.items() if k != "results"}, "whole results file"),
        (lambda d: {**d, "results": [{**d["results"][0], "colour": 1}]}, "colour"),
        (lambda d: {**d, "results": [{**d["results"][0], "speedup": -3}]}, "row 1, decode hf-generate: speedup is -3"),
        (lambda d: {**d, "results": [{**d["results"][0], "speedup": float("nan")}]}, "NaN is not a number"),
        (lambda d: {**d, "results": [{**d["results"][0], "samples": []}]}, "no usable samples"),
        (lambda d: {**d, "results": [{**d["results"][0], "samples": [{"total_ms": 0.0}]}]}, "no usable samples"),
        (lambda d: {**d, "results": [{**d["results"][0], "speedup_low": 9.0}]}, "the interval of the speed-up"),
        (
            lambda d: {**d, "results": [{**d["results"][0], "passes": 2}]},
            "3 samples are not as many of each of 2 passes",
        ),
        (lambda d: {**d, "results": [{**d["results"][0], "passes": 0}]}, "of each of 0 passes"),
        (lambda d: {**d, "runs": None}, "whole results file"),
        (lambda d: [1], "schema None"),
    ],
)
def test_damaged_results_are_refused(results, tmp_path, damage, said):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(damage(json.loads(results.to_json()))))
    with pytest.raises(InputError, match=said):
        ResultSet.read(path)
    path.write_text(results.to_json()[:200])
    with pytest.raises(InputError, match="not valid JSON"):
        ResultSet.read(path)
    with pytest.raises(InputError, match="can't be read"):
        ResultSet.read(tmp_path / "absent.json")


def test_runs_take_turns_and_the_warm_up_is_not_counted():
    order = []

    def run(name):
        order.append(name)
        return {"total_ms": float(len(order))}

    found = interleave({"a": lambda: run("a"), "b": lambda: run("b")}, 3, "")
    assert order == ["a", "b"] * 4
    assert [s["total_ms"] for s in found["a"]] == [3, 5, 7]


def test_interval_tells_drift_between_passes():
    # Each pass by itself repeats exactly; the machine was in another state in each of the three.
    reference = [{"total_ms": ms} for ms in (10.0, 10.0, 12.0, 12.0, 14.0, 14.0)]
    samples = [{"total_ms": 10.0}] * 6
    spread = speedup(reference, samples, "total_ms", passes=3)
    assert (spread.value, spread.low, spread.high) == pytest.approx((1.2, 1.0, 1.4))
    steady = speedup([{"total_ms": 12.0}] * 6, samples, "total_ms", passes=3)
    assert (steady.low, steady.high) == pytest.approx((1.2, 1.2))
    for passes in (1, 2):  # without the stages, or with fewer, the same samples tell less
        narrower = speedup(reference, samples, "total_ms", passes=passes)
        assert narrower.high - narrower.low <= spread.high - spread.low
    with pytest.raises(InputError, match="6 samples are not as many of each of 4 passes"):
        speedup(reference, samples, "total_ms", passes=4)


def test_schema_is_named_with_its_version():
    assert re.fullmatch(r"sentinel-results/\d+", SCHEMA)
