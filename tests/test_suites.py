"""The benchmark suites on tiny models, resuming, comparing."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder, resized
from synthetic_results import PLACE, row
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.sources import LoadedModel
from sentinel.measure import environment
from sentinel.measure.compare import compare
from sentinel.measure.results import ResultSet
from sentinel.measure.runner import _turns, run_suites
from sentinel.measure.suites import SUITES, suite_of
from sentinel.measure.suites.engines import Engines
from sentinel.measure.suites.prefill import prefill_operations
from sentinel.measure.suites.request import Request, SuiteSettings, settings_of
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.report.content import content_of

SMALL = {"rounds": 2, "prompt_tokens": 6, "new_tokens": 2}


@pytest.fixture(scope="module")
def loaded():
    return LoadedModel("tiny", filled_decoder(spec_of("llama-grouped")), None, Record(weights="random"))


@pytest.fixture(scope="module")
def engines(loaded):
    return Engines(loaded, threads=1)


@pytest.fixture
def measured(loaded, engines):
    """Rows of a suite, which must be whole: a file of them can be read again."""

    def measure(name, source="tiny", **given):
        settings = settings_of(suite_of(name), given, quick=True)
        rows = suite_of(name).run(Request(loaded, source, None, engines, settings, frozenset(given)))
        assert all(r.suite == name and r.model == "tiny" and len(r.samples) == given["rounds"] for r in rows)
        assert all(r.speedup > 0 for r in rows)
        assert all((r.speedup_low is None) == (given["rounds"] < 3) for r in rows)  # two rounds tell of no interval
        assert all(r.speedup_low <= r.speedup <= r.speedup_high for r in rows if r.speedup_low is not None)
        assert len({r.key for r in rows}) == len(rows)
        return rows

    return measure


def check_rooflines(rows):
    for r in rows:
        assert r.tokens_per_s > 0 and r.tpot_ms > 0 and r.bandwidth_gb_s > 0
        assert r.roofline == "memory" and r.roofline_tokens_per_s > 0 and r.mbu > 0  # without a known cache
        assert r.weight_bytes_per_token > 0 and r.parameters > 0


def test_pruning_suite_removes_heads_and_neurons(measured, loaded):
    rows = measured("pruning", **SMALL, heads=(0.0, 0.5), expand_kv=True)
    found = [(r.engine, r.heads_pruned, r.neurons_pruned) for r in rows]
    levels = ("level 1", "level 2", "level 3 int8")
    pruned = [(0.0, 0.0), (0.5, 0.0), (0.5, 0.5)]
    assert found == [("hf-generate", 0, 0), ("level 0", 0, 0)] + [(e, h, n) for h, n in pruned for e in levels]
    check_rooflines(rows)
    assert {r.speedup_over for r in rows} == {"hf-generate"} and rows[0].is_reference
    by_key = {(r.engine, r.heads_pruned, r.neurons_pruned): r for r in rows}
    for engine in levels:  # the expanded model with half of its heads is not the grouped one with half of its groups
        assert by_key[engine, 0.5, 0.5].weight_bytes_per_token < by_key[engine, 0.5, 0].weight_bytes_per_token
    whole, half = (by_key["level 1", h, h].parameters for h in (0.0, 0.5))
    assert whole == loaded.spec.parameter_count() > half


def test_levels_suite_has_every_level_at_every_ratio(measured):
    rows = measured("levels", **SMALL)
    engines = ("level 0", "level 1", "level 2", "level 3 int8")
    assert [(r.engine, r.heads_pruned) for r in rows[1:]] == [(e, h) for h in (0.0, 0.5) for e in engines]
    check_rooflines(rows)


def test_context_suite_compares_each_level_with_itself(measured):
    rows = measured("context", rounds=2, new_tokens=3, heads=(0.0, 0.5), lengths=(8, 40))
    assert [r.prompt_tokens for r in rows] == [8] * 4 + [40] * 4
    assert all(r.speedup_over == r.engine and r.phase == "decode" for r in rows)
    assert [r.is_reference for r in rows] == [True, True, False, False] * 2
    check_rooflines(rows)
    with pytest.raises(InputError, match="context"):
        measured("context", rounds=2, new_tokens=3, lengths=(8, 60))


def test_prefill_suite_tells_the_arithmetic_of_each_length(measured, loaded):
    rows = measured("prefill", rounds=2, prompt_tokens=(8, 40), levels=(2, 3))
    engines = ("hf-generate", "level 2", "level 3 int8")
    assert [(r.prompt_tokens, r.engine) for r in rows] == [(n, e) for n in (8, 40) for e in engines]
    for r in rows:
        assert r.new_tokens == 1 and r.speedup_over == "hf-generate"
        operations = r.gops_per_thread * 1e9 * (r.ttft_ms / 1e3)  # of one thread
        assert operations == pytest.approx(prefill_operations(loaded.decoder.spec, r.prompt_tokens))
    with pytest.raises(InputError, match="one length of prompts, not 2"):
        settings_of(suite_of("decode"), {"prompt_tokens": (8, 40)})


def test_operations_of_a_prefill_are_those_that_torch_counts():
    decoder = filled_decoder(spec_of("llama-grouped"))
    tokens = torch.arange(12)[None]
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        decoder(tokens)
    head = 2 * decoder.spec.vocab_size * decoder.spec.n_embd
    attention = sum(4 * layer.n_head * layer.head_dim for layer in decoder.spec.layers)
    # Torch counts the head for every token, and attention with masked scores; we count norms as well.
    expected = counted.get_total_flops() - 11 * head - 12 * (12 - 6) * attention
    assert prefill_operations(decoder.spec, 12) == pytest.approx(expected, rel=0.01)


def test_batch_suite_counts_all_sequences(measured):
    rows = measured("batch", **SMALL, batches=(1, 3), levels=(1, 3))
    assert [r.batch for r in rows] == [1, 1, 1, 3, 3, 3]
    check_rooflines(rows)
    for r in rows:
        total = sorted(s["total_ms"] for s in r.samples)
        assert r.tokens_per_s == pytest.approx(r.batch * 2 / (sum(total) / 2) * 1e3)


def test_attention_suite_has_every_share_of_heads(measured):
    rows = measured("attention", rounds=2, lengths=(8, 16), heads=(0.0, 0.5), expand_kv=True)
    assert len(rows) == 2 * 2 * 3
    assert {(r.engine, r.heads_pruned) for r in rows} == {
        ("attention-original", 0.0), ("attention-optimised", 0.0), ("attention-optimised", 0.5)
    }  # fmt: skip
    assert {(r.phase, r.prompt_tokens) for r in rows} == {(p, n) for p in ("decode", "prefill") for n in (8, 16)}
    assert all(r.tokens_per_s > 0 for r in rows)
    default = measured("attention", rounds=1)  # lengths that do not fit are left out
    assert {r.prompt_tokens for r in default} == {32}


def test_load_suite_measures_processes_of_their_own(measured, loaded, tmp_path):
    source = str(tmp_path / "tiny")
    save_checkpoint(loaded.decoder, source, None, loaded.record)
    rows = measured("load", source, rounds=1, prompt_tokens=6)
    assert [r.engine for r in rows] == ["hf-generate", "level 1", "level 3 int8"]
    for r in rows:
        assert 0 < r.load_ms < r.first_token_ms
        assert r.ttft_ms == pytest.approx(r.first_token_ms - r.load_ms)
        assert 0 < r.loaded_memory_mb <= r.peak_memory_mb
    assert rows[2].peak_memory_mb < rows[0].peak_memory_mb  # no torch in that process


def test_engines_of_pruned_levels_do_not_disturb_each_other(engines):
    half, whole = engines.at(1, heads=0.5), engines.at(1)
    prompts = [[1, 2, 3]]
    expected = half.engine.prefill(prompts, 1), whole.engine.prefill(prompts, 1)
    most = engines.at(1, heads=0.7)
    most.engine.prefill(prompts, 1)
    assert (half.engine.prefill(prompts, 1) == expected[0]).all()
    assert (whole.engine.prefill(prompts, 1) == expected[1]).all()
    masked, native = engines.at(0, heads=0.5), engines.at(2, heads=0.5)
    for other in (masked, native):  # all levels prune the same heads
        assert abs(other.engine.prefill(prompts, 1) - expected[0]).max() < 1e-3 * abs(expected[0]).max()


def test_what_is_not_there_can_not_be_removed():
    spec = spec_of("llama-grouped")
    spec = ModelSpec(**{**vars(spec), "layers": (resized(spec.layers[0], 0, 0, 8, 0),)})
    engines = Engines(LoadedModel("bare", filled_decoder(spec), None, Record(weights="random")))
    with pytest.raises(InputError, match="no attention heads"):
        engines.at(1, heads=0.5)
    with pytest.raises(InputError, match="no MLP neurons"):
        engines.at(1, neurons=0.5)


def test_table_of_suites_names_real_options():
    fields = {field.name for field in dataclasses.fields(SuiteSettings)}
    for suite in SUITES.values():
        assert set(suite.options) <= fields and set(suite.quick) <= set(suite.options)
        settings_of(suite, {}, quick=True)
    with pytest.raises(InputError, match="there is no suite 'speed'"):
        suite_of("speed")
    with pytest.raises(InputError, match="takes no --prompt-tokens"):
        settings_of(suite_of("attention"), {"prompt_tokens": 3})


SUITES_ASKED = {"attention": {"rounds": 1, "lengths": (8,)}, "batch": {**SMALL, "batches": (1,), "levels": (1,)}}
SPREAD = sorted(name for name, suite in SUITES.items() if suite.passes > 1)
SIZES = {"heads": (0.0, 0.5), "lengths": (8,), "batches": (1, 2), "levels": (1, 3), "precision": ("int8",), **SMALL}


def interrupt(_):
    raise KeyboardInterrupt


def test_rounds_are_spread_over_passes(loaded, tmp_path):
    source = str(tmp_path / "tiny")  # for the processes that measure memory
    save_checkpoint(loaded.decoder, source, None, Record())
    asked = {name: {k: v for k, v in SIZES.items() if k in SUITES[name].options} for name in SPREAD}
    kept: list[ResultSet] = []
    found = run_suites(loaded, asked, source=source, threads=1, keep=kept.append)
    assert len(kept) == 2 * len(SPREAD)  # two rounds make two passes
    half = {r.key: r for r in kept[len(SPREAD) - 1].results}
    assert half.keys() == {r.key for r in found.results} and {r.suite for r in found.results} == set(SPREAD)
    for r in found.results:
        before = half[r.key]
        assert (before.passes, len(before.samples)) == (1, 1)
        assert (r.passes, len(r.samples)) == (2, 2)
        assert r.samples[0] == before.samples[0]
        assert r.speedup > 0 and r.speedup_low is None  # two rounds tell of no interval
        assert r.peak_memory_mb == before.peak_memory_mb  # measured once
    assert all(run["passes"] == 2 for run in found.runs.values())
    alone = run_suites(loaded, {"levels": asked["levels"]}, source=source, threads=1)
    assert alone.runs["levels"]["passes"] == 1 and {len(r.samples) for r in alone.results} == {2}


def test_suites_of_one_pass_stand_between_those_of_many():
    turns = _turns({"a": 3, "long": 1, "b": 2, "longer": 1, "longest": 1})
    assert turns == [
        ("a", 1), ("b", 1), ("long", 1), ("a", 2), ("b", 2), ("longer", 1), ("longest", 1), ("a", 3)
    ]  # fmt: skip
    assert _turns({"a": 1, "b": 1}) == [("a", 1), ("b", 1)]
    assert _turns({"a": 2, "b": 2}) == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_engines_are_warmed_up_where_other_work_was_between(loaded, monkeypatch):
    asked = {
        name: {k: v for k, v in SIZES.items() if k in SUITES[name].options} for name in ("levels", "batch", "load")
    }
    for name in asked:
        run = importlib.import_module(f"sentinel.measure.suites.{name}").run

        def noted(request, name=name, run=run):
            seen.append((name, request.number, request.warm_up))
            return run(request) if name != "load" else []

        monkeypatch.setattr(f"sentinel.measure.suites.{name}.run", noted)
    seen: list[tuple[str, int, bool]] = []
    kept: list[ResultSet] = []
    run_suites(loaded, asked, source="tiny", threads=1, keep=kept.append)
    expected = [("levels", 1, True), ("batch", 1, True), ("load", 1, True), ("levels", 2, True), ("batch", 2, False)]
    assert seen == expected
    seen.clear()
    run_suites(loaded, asked, source="tiny", threads=1, resume=kept[1])  # engines of a new process are cold
    assert seen == [("load", 1, True), ("levels", 2, True), ("batch", 2, True)]


def test_a_run_that_was_interrupted_goes_on(loaded, monkeypatch):
    kept: list[ResultSet] = []
    monkeypatch.setattr("sentinel.measure.suites.attention.run", interrupt)  # between the passes of batch
    with pytest.raises(KeyboardInterrupt):
        run_suites(loaded, SUITES_ASKED, source="tiny", threads=1, keep=kept.append)
    monkeypatch.undo()
    assert {(r.suite, len(r.samples)) for r in kept[-1].results} == {("batch", 1)}
    assert "Suite batch was measured in 1 of 2 passes" in " ".join(content_of(kept[-1]).missing)
    whole = run_suites(loaded, SUITES_ASKED, source="tiny", threads=1, resume=kept[-1])
    assert {r.suite for r in whole.results} == set(whole.runs) == {"attention", "batch"}
    assert not any("passes" in sentence for sentence in content_of(whole).missing)
    by_key = {r.key: r for r in whole.results}
    assert all(by_key[r.key].samples[:1] == r.samples and by_key[r.key].passes == 2 for r in kept[-1].results)
    for suite in SUITES_ASKED:  # nothing is measured again
        monkeypatch.setattr(f"sentinel.measure.suites.{suite}.run", interrupt)
    assert run_suites(loaded, SUITES_ASKED, source="tiny", threads=1, resume=whole).results == whole.results
    monkeypatch.undo()
    lost = dataclasses.replace(kept[-1], results=kept[-1].results[:-1])
    with pytest.raises(InputError, match="the earlier passes hold no row of batch level 1"):
        run_suites(loaded, SUITES_ASKED, source="tiny", threads=1, resume=lost)
    for other, said in (
        ({"attention": {"rounds": 2, "lengths": (8,)}}, "suite attention had rounds 1, not 2"),
        ({"attention": {"rounds": 1, "lengths": (9,)}}, r"had lengths \[8\], not \[9\]"),
    ):
        with pytest.raises(InputError, match=said):
            run_suites(loaded, other, source="tiny", resume=whole)
    renamed = dataclasses.replace(loaded, name="other")
    with pytest.raises(InputError, match="had model tiny, not other"):
        run_suites(renamed, SUITES_ASKED, source="tiny", resume=kept[-1])
    moved = dataclasses.replace(kept[-1], environment=dataclasses.replace(kept[-1].environment, cpu="an abacus"))
    with pytest.raises(InputError, match="cpu an abacus against"):
        run_suites(loaded, SUITES_ASKED, source="tiny", resume=moved)


def test_bench_resumes_from_the_command_line(tmp_path, capsys):
    model, out = tmp_path / "tiny", tmp_path / "r.json"
    save_checkpoint(filled_decoder(spec_of("gpt2")), model, None, Record())
    command = ["bench", "attention", str(model), "--lengths", "8", "--heads", "0", "--threads", "1", "--json", str(out)]
    assert main([*command, "--rounds", "3"]) == 0
    first = json.loads(out.read_text())
    assert main([*command, "--rounds", "3", "--resume", str(out)]) == 0
    assert json.loads(out.read_text()) == first
    capsys.readouterr()
    assert main([*command, "--rounds", "2", "--resume", str(out)]) == 2
    assert "had rounds 3, not 2" in capsys.readouterr().err
    assert main(["compare", str(out), str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 rows agree (100%)" in said and "worse" not in said
    assert main(["compare", str(out), str(tmp_path / "absent.json")]) == 2
    out.write_text(out.read_text()[:300])
    assert main(["compare", str(out), str(out)]) == 2
    assert "not valid JSON" in capsys.readouterr().err


def test_comparison_tells_only_what_left_the_interval():
    reference = row("hf-generate", (10.0, 11.0, 10.5))
    old = ResultSet(PLACE, [reference, row("level 1", (5.0, 5.1, 5.2)), row("level 2", (3.0, 3.1, 3.2))])
    same = compare(old, old)
    assert (same.agreeing, same.compared, same.changes) == (2, 2, [])
    low = old.results[1].speedup_low
    near = [reference, dataclasses.replace(old.results[1], speedup=low * 0.98), old.results[2]]
    assert compare(old, ResultSet(PLACE, near)).changes == []
    far = [reference, dataclasses.replace(old.results[1], speedup=low * 0.96)]
    found = compare(old, ResultSet(dataclasses.replace(PLACE, threads=1), far))
    (change,) = found.changes
    assert (change.row.engine, change.better, found.agreeing, found.compared) == ("level 1", False, 0, 1)
    assert [r.engine for r in found.only_old] == ["level 2"] and found.only_new == []
    assert found.environment == ["threads 2 against 1"]
    judged = dataclasses.replace(reference, perplexity=20.0, text="a", context=512, tokens=1024)
    worse = dataclasses.replace(judged, perplexity=21.0)
    (change,) = compare(ResultSet(PLACE, [judged]), ResultSet(PLACE, [worse])).changes
    assert (change.quantity, change.better) == ("perplexity", False)
    with pytest.raises(InputError, match="no row in common"):  # of another text
        compare(ResultSet(PLACE, [judged]), ResultSet(PLACE, [dataclasses.replace(worse, tokens=2048)]))
    with pytest.raises(InputError, match="no row in common"):
        compare(old, ResultSet(PLACE, [row("level 1", (5.0,), (5.0,), batch=2)]))
    with pytest.raises(InputError, match="two rows of decode level 1"):
        compare(ResultSet(PLACE, [old.results[1]] * 2), old)


def test_stolen_time_is_the_share_between_two_looks():
    before, after = environment.ProcessorTime(1000, 10), environment.ProcessorTime(1400, 30)
    assert environment.steal_share(before, after) == 0.05
    assert environment.steal_share(None, after) is None and environment.steal_share(after, after) is None
