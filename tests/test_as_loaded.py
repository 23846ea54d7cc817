"""What pruning saved is told against the model as loaded, not against the one whose K/V were repeated to prune it."""

from __future__ import annotations

import json

import pytest
from conftest import spec_of
from helpers import filled_decoder, letter_tokenizer, refused, resized

from sentinel.adapt.cycles.budget import make_budget, share_costs, size_costs
from sentinel.adapt.pruning.compact import expand_kv
from sentinel.api import changing
from sentinel.cli import main
from sentinel.commands.pruning import not_smaller
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.sources import load
from sentinel.measure.results import ResultSet
from sentinel.measure.runner import run_suites
from sentinel.measure.suites import attention
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

PLAIN = ("--criterion", "magnitude", "--no-compensate")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> str:
    """A model of two groups of four heads in each layer: repeating K/V adds far more than a third of the heads takes."""
    spec = spec_of("llama-grouped")
    spec = ModelSpec(**{**vars(spec), "vocab_size": 17, "max_seq_len": 128})
    layers = tuple(resized(layer, 8, 2, layer.head_dim, layer.intermediate_size) for layer in spec.layers)
    spec = ModelSpec(**{**vars(spec), "layers": layers})
    folder = tmp_path_factory.mktemp("models") / "wide"
    save_checkpoint(filled_decoder(spec), folder, letter_tokenizer(), Record())
    return str(folder)


def pruned(wide, letters, tmp_path, *more: str) -> list[str]:
    out = str(tmp_path / "out")
    return ["prune", wide, "-o", out, *PLAIN, "--text", letters["test"], "--eval-tokens", "64", *more]


def test_the_table_begins_with_the_model_as_loaded(wide, letters, tmp_path, capsys):
    assert main(pruned(wide, letters, tmp_path, "--heads", "0.25", "--expand-kv")) == 0
    said = capsys.readouterr().out
    loaded, made = load(wide).spec, load_checkpoint(tmp_path / "out").spec
    rows = [line.split() for line in said.splitlines() if line.strip().startswith(("as loaded", "pruned"))]
    assert (
        rows[0][4] == f"{loaded.parameter_count():,}" and rows[0][7] == f"{loaded.kv_bytes_per_position() / 1e3:,.1f}"
    )
    assert any(cell == f"{made.parameter_count():,}" for cell in rows[1])
    (line,) = [line for line in said.splitlines() if "as loaded" in line and line.startswith("--expand-kv")]
    assert f"{made.parameter_count() * 4 / 1e6:,.1f} MB" in line and "KV cache per token is 3x" in line


def test_a_result_that_is_smaller_gets_no_such_line(wide, letters, tmp_path, capsys):
    assert main(pruned(wide, letters, tmp_path, "--heads", "0.5", "--neurons", "0.5")) == 0
    assert "not below" not in (said := capsys.readouterr().out) and "KV cache" not in said


def test_every_way_of_not_being_smaller_is_one_line():
    spec = spec_of("llama-grouped")
    expanded = expand_kv(filled_decoder(spec)).spec
    half = Width((2,) * 3, (40,) * 3).of(expanded)  # fewer weights, and as many cached keys
    assert not_smaller(spec, half, "m", expanded=True) is None
    more = Width((4,) * 3, (40,) * 3).of(expanded)
    said = not_smaller(spec, more, "m", expanded=True)
    saved = spec.weight_bytes_per_token() - more.weight_bytes_per_token()
    tokens = saved // (more.kv_bytes_per_position() - spec.kv_bytes_per_position())
    assert said == (
        f"--expand-kv repeats grouped K/V first: KV cache per token is 2x, so that beyond {tokens:,} cached tokens a token "
        "reads more than before."
    )
    same = not_smaller(spec, spec, "m", expanded=False)
    assert same is not None and same.endswith("MB of m as loaded.") and "KV" not in same
    for text in (said, same, not_smaller(spec, expanded, "m", expanded=True)):
        assert text is not None and "\n" not in text


def test_memory_targets_are_below_the_model_as_loaded(wide, letters, tmp_path, capsys):
    loaded = load(wide)
    size = loaded.spec.parameter_count() * 4 / 1e6
    expanded = expand_kv(loaded.decoder).spec.parameter_count() * 4 / 1e6
    target = str((size + expanded) / 2)
    command = [
        "prune",
        wide,
        "-o",
        str(tmp_path / "m"),
        "--criterion",
        "fisher",
        "--calibration",
        letters["calibration"],
    ]
    command += ["--calibration-tokens", "512", "--text", letters["test"], "--eval-tokens", "64", "--expand-kv"]
    assert "is not below the" in refused(capsys, *command, "--max-memory", target)
    assert main([*command, "--max-memory", str(0.93 * size)]) == 0
    assert load_checkpoint(tmp_path / "m").spec.parameter_count() * 4 / 1e6 <= 0.93 * size  # added biases included


def test_speed_targets_are_over_the_model_as_loaded(wide, letters, tmp_path, monkeypatch):
    """Twice as fast as loaded: with repeated K/V, whose half layers are made to take three times as long, out of reach."""

    def cost(loaded, dense, precision, narrow):
        assert precision == "int8" and narrow == (0.7, 0.5)
        slow = 1.0 if dense is loaded.decoder else 3.0
        total = sum(dense.spec.layers[0].n_kv_head for _ in dense.spec.layers)
        return lambda plan: slow * sum(plan.width.groups) / total, 1.0

    monkeypatch.setattr(changing, "measure_plan_cost", cost)
    command = pruned(wide, letters, tmp_path, "--speedup", "2", "--expand-kv")
    assert main(command) == 2  # 0.3 x 3 is not half of 1
    assert main([*command[:-1]]) == 0


def test_budgets_are_below_the_model_as_loaded():
    spec = spec_of("llama-grouped")
    expanded = expand_kv(filled_decoder(spec)).spec
    costs = {"heads": share_costs(expanded), "MB": size_costs(expanded), "ms": share_costs(expanded)}
    size = spec.parameter_count() * 4 / 1e6
    with pytest.raises(InputError, match="not below the unpruned model's"):
        make_budget(f"{1.01 * size}MB", costs, whole={"MB": size})
    assert make_budget("2x", costs, whole={"ms": 0.5}).limit == 0.25
    assert make_budget("2x", costs).limit == 0.5


def test_a_sweep_tells_of_the_model_as_loaded(wide, letters, tmp_path):
    out = tmp_path / "s.json"
    command = ["sweep", "--models", wide, "--criteria", "magnitude", "--heads", "0.25", "--compensate", "no"]
    command += ["--calibration", letters["calibration"], "--calibration-tokens", "512", "--text", letters["test"]]
    assert main([*command, "--expand-kv", "--eval-tokens", "64", "--workers", "1", "-o", str(out)]) == 0
    dense, smaller = ResultSet.read(out).results
    assert dense.parameters == load(wide).spec.parameter_count() < (smaller.parameters or 0)
    assert json.loads(out.read_text())["results"][0]["perplexity_ratio"] == pytest.approx(1.0)


def test_suites_compare_with_the_model_as_loaded(wide, letters):
    loaded = load(wide)
    asked = {
        "criteria": ("fisher",),
        "heads": (0.25,),
        "expand_kv": True,
        "rounds": 1,
        "new_tokens": 2,
        "eval_tokens": 64,
    }
    texts = {"text": letters["test"], "calibration": letters["calibration"], "calibration_tokens": 512}
    rows = run_suites(loaded, {"quality": {**asked, **texts}}, source=wide, threads=1).results
    assert {row.parameters for row in rows if not row.heads_pruned} == {loaded.spec.parameter_count()}
    assert rows[0].weight_bytes_per_token == loaded.spec.weight_bytes_per_token()
    assert {row.speedup for row in rows if row.engine == rows[0].engine} == {1.0}
    parts = attention._parts(loaded.decoder, expand_kv(loaded.decoder), 0, (0.0, 0.5))
    cached = [(part.engine, part.heads, part.cache_spec.layers[0].n_kv_head) for part in parts]
    assert cached == [(attention.REFERENCE, 0.0, 8), (attention.OPTIMISED, 0.0, 2), (attention.OPTIMISED, 0.5, 8)]
