"""Profiles: every component is there, times add up, and nothing of a profile is left behind."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, some_tokens

from sentinel.adapt.integration import integrate
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.infer.generate import generate_tokens
from sentinel.infer.meter import COMPONENTS, components_of
from sentinel.infer.native.counters import PART_COMPONENTS
from sentinel.infer.native.kernels.names import Part
from sentinel.infer.opening import make_engine
from sentinel.measure.profiling.profile import profile_engine
from sentinel.measure.profiling.tensor_memory import LiveTensors
from sentinel.measure.profiling.trace import chrome_trace
from sentinel.models.record import Record
from sentinel.report.charts import chart_text
from sentinel.report.profile_view import profile_chart

PROMPT = list(range(1, 9))


@pytest.mark.parametrize(
    "model",
    [filled_decoder(spec) for spec in (spec_of("gpt2"), spec_of("llama-grouped"), unequal_spec())]
    + [integrate(filled_decoder(spec_of("llama-grouped")), rank=2)],
    ids=["gpt2", "llama", "unequal", "integrated"],
)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_components_are_whole_and_nothing_stays_behind(model, level):
    engine = make_engine(model, level, threads=2)
    before = list(generate_tokens(engine, [PROMPT], 6))
    state = {id(m): set(vars(m)) for m in engine.decoder.modules()} if level < 2 else {}
    found = profile_engine(engine, PROMPT, 6, rounds=2)
    assert tuple(part.name for part in found.components) == components_of(model.spec, threads=level >= 2)
    assert all(part.decode_ms > 0 and part.prefill_ms > 0 for part in found.components)
    assert sum(part.share for part in found.components) == pytest.approx(1)
    assert found.unprofiled_step_ms > 0 and found.unprofiled_prefill_ms > 0
    for step in found.steps:
        assert sum(step.components().values()) == pytest.approx(step.total_ms, rel=1e-3)
        assert all(s.own_ms >= 0 and s.start_ms + s.total_ms <= step.total_ms * 1.001 + 1e-3 for s in step.spans)
    named = {part.name: part for part in found.components}
    assert bool(named["LM head"].fused) == (level >= 2)
    assert named["Python"].fused  # says what has no name of its own
    assert found.sum_ms == pytest.approx(found.step_ms, rel=0.03)
    assert sum(part.prefill_ms for part in found.components) == pytest.approx(found.prefill_ms, rel=0.03)
    assert state == ({id(m): set(vars(m)) for m in engine.decoder.modules()} if level < 2 else {})
    assert list(generate_tokens(engine, [PROMPT], 6)) == before


def test_memory_is_what_the_model_says():
    spec = spec_of("llama-grouped")
    decoder = filled_decoder(spec)
    for level in (1, 2):
        found = profile_engine(make_engine(decoder, level, threads=1), PROMPT, 4, rounds=1)
        megabytes = {use.name: use.mb for use in found.memory}
        assert megabytes["KV cache"] >= 12 * spec.kv_bytes_per_position() / 1e6 * 0.999
        assert all(mb > 0 for mb in megabytes.values())
        if level == 1:
            assert megabytes["weights"] == pytest.approx(4 * spec.parameter_count(gates=True) / 1e6)
            assert megabytes["activations, prefill"] > megabytes["activations, decoding"]


def test_live_tensors_are_counted_while_they_live():
    weight = torch.ones(100)
    with LiveTensors() as live:
        a = weight + 1  # 400 bytes
        b = a.view(10, 10) * 2  # 400 more; the view shares a's
        del a
        c = torch.cat([b, b])  # 800, after the first 400 have gone
        kept = weight[:50]  # the weights', not counted
    assert live.peak == 1200 and live.now == 1200
    del b, c, kept
    assert live.now == 0


def test_every_part_of_the_compiled_step_has_a_component():
    assert {part.name.lower() for part in Part} == set(PART_COMPONENTS)
    assert set(PART_COMPONENTS.values()) < set(COMPONENTS)


def test_trace_and_chart_hold_the_profile():
    found = profile_engine(make_engine(filled_decoder(spec_of("gpt2")), 1), PROMPT, 4, rounds=1)
    events = json.loads(chrome_trace(found))["traceEvents"]
    steps = [e for e in events if e.get("cat") == "step"]
    assert [e["name"] for e in steps] == ["prefill", "token 2", "token 3", "token 4"]
    for first, second in itertools.pairwise(steps):
        assert second["ts"] >= first["ts"] + first["dur"] - 0.01
    inside = [e for e in events if e["ph"] == "X" and e["cat"] != "step"]
    assert {e["cat"] for e in inside} >= set(components_of(spec_of("gpt2"), threads=False)) - {"Python"}
    assert any(e["name"] == "layer 2 q/k/v" for e in inside)
    assert chart_text(profile_chart(found, "tiny"), ".svg").startswith("<svg")


def test_bad_requests_are_refused():
    engine = make_engine(filled_decoder(spec_of("gpt2")), 1)
    with pytest.raises(InputError, match="at least 2 new tokens"):
        profile_engine(engine, PROMPT, 1)
    with pytest.raises(InputError, match="context"):
        profile_engine(engine, some_tokens(engine.spec, 1, 60)[0].tolist(), 20)


def test_the_command_prints_and_writes(tmp_path, capsys):
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "m", None, Record())
    files = {
        name: tmp_path / f"p.{end}" for name, end in (("--trace", "trace"), ("--chart", "html"), ("--json", "json"))
    }
    where = [str(part) for pair in files.items() for part in pair]
    small = ["--prompt-tokens", "8", "--new-tokens", "4", "--rounds", "1"]
    assert main(["profile", str(tmp_path / "m"), "--level", "2", *small, *where]) == 0
    said = capsys.readouterr().out
    assert "LM head" in said and "the final norm" in said and "not profiled" in said and "KV cache" in said
    (row,) = json.loads(files["--json"].read_text())["results"]
    names = {c["name"] for c in row["components"]}
    assert row["engine"] == "level 2" and names == set(components_of(spec_of("gpt2"), threads=True))
    assert "vegaEmbed" in files["--chart"].read_text() and "traceEvents" in files["--trace"].read_text()
    assert main(["profile", str(tmp_path / "m"), "--chart", "p.png"]) == 2
    assert ".html or .svg" in capsys.readouterr().err
