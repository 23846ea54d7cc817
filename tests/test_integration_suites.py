"""The suites that measure what being adaptive costs."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import spec_of
from helpers import LETTERS, filled_decoder, letter_tokenizer

from sentinel.adapt.integration import integrate
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.sources import LoadedModel
from sentinel.measure import memory
from sentinel.measure.results import Result
from sentinel.measure.suites import integration, scaling
from sentinel.measure.suites.engines import Engines
from sentinel.measure.suites.request import Request, SuiteSettings
from sentinel.models.decoder import Decoder
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.report.tables import tables
from sentinel.report.verdicts import features_that_pay


def request_of(decoder: Decoder, **settings) -> Request:
    loaded = LoadedModel("tiny", decoder, None, Record(weights="random"))
    given = SuiteSettings(prompt_tokens=(6,), new_tokens=3, rounds=2, **settings)
    return Request(loaded, "tiny", 0, Engines(loaded), given)


def test_integration_suite_has_five_configurations_at_every_ratio():
    spec = spec_of("gpt2")
    rows = integration.run(request_of(filled_decoder(spec), levels=(1,), heads=(0.0, 0.5)))
    names = ["original", "all", "no-baseline", "no-unet", "minimal"]
    assert [(row.heads_pruned, row.configuration) for row in rows] == [(r, n) for r in (0.0, 0.5) for n in names]
    assert [row.level for row in rows] == [0, 1, 1, 1, 1] * 2
    reference = rows[0]
    assert all(row.speedup_over == reference.engine and row.tokens_per_s for row in rows)
    growth = {row.configuration: row.growth or 0 for row in rows[:5]}
    assert growth["original"] == growth["minimal"] == 0 < growth["no-unet"] == growth["no-baseline"] < growth["all"]
    assert reference.parameters == spec.parameter_count()
    assert rows[9].parameters is not None and rows[9].parameters < spec.parameter_count()
    assert "no-unet" in str(tables(rows)[0].rows)
    with pytest.raises(InputError, match="integration suite needs a model without"):
        integration.run(request_of(integrate(filled_decoder(spec), rank=2), levels=(1,), heads=(0.0,)))


def worded_request(tmp_path, **settings) -> Request:
    """A model that has a tokenizer of letters, and texts of letters to learn from and to be judged by."""
    texts = {name: str(tmp_path / f"{name}.txt") for name in ("calibration", "text")}
    for seed, path in enumerate(texts.values()):
        rng = random.Random(seed)
        Path(path).write_text(" ".join(rng.choice(LETTERS) for _ in range(5000)))
    decoder = filled_decoder(ModelSpec(**{**vars(spec_of("llama-grouped")), "vocab_size": 17}))
    loaded = LoadedModel("tiny", decoder, letter_tokenizer(), Record())
    sizes = {"prompt_tokens": (6,), "new_tokens": 3, "rounds": 2, "calibration_tokens": 256, "eval_tokens": 500}
    given = SuiteSettings(levels=(1,), heads=(0.0, 0.5), **texts, **sizes, **settings)
    return Request(loaded, "tiny", None, Engines(loaded), given)


def replace_settings(request: Request, **changed) -> Request:
    return replace(request, settings=replace(request.settings, **changed))


def test_every_configuration_is_judged_after_the_same_recovery(tmp_path):
    request = worded_request(tmp_path, recovery_steps=3)
    before = {name: tensor.clone() for name, tensor in request.loaded.decoder.state_dict().items()}
    rows = integration.run(request)
    assert [row.recovery_steps for row in rows] == [0] * 5 + [3] * 5
    assert all(row.perplexity_ratio == pytest.approx(1, abs=1e-5) for row in rows[:5])
    original, *features, minimal = rows[5:]
    assert original.perplexity == minimal.perplexity
    assert len({row.perplexity for row in (*features, minimal)}) == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in request.loaded.decoder.state_dict().items())
    (table,) = tables(rows)
    assert "at most 3 steps" in table.note and "U-Net skips " in table.note and "x the speed" in table.note


def test_the_compiled_levels_run_every_configuration_and_int8_has_no_perplexity_of_fp32(tmp_path):
    rows = integration.run(replace_settings(worded_request(tmp_path, recovery_steps=2), levels=(2, 3)))
    assert [(row.level, row.precision) for row in rows[1:5]] == [(2, "fp32"), (3, "int8")] * 2
    assert all((row.perplexity is None) == (row.level == 3) for row in rows)
    assert all(row.recovery_steps == 2 for row in rows if row.heads_pruned)


def test_recovery_that_was_asked_for_is_not_left_out_in_silence():
    request = request_of(filled_decoder(spec_of("gpt2")), levels=(1,), heads=(0.0,), recovery_steps=3)
    assert integration.run(request)[0].perplexity is None
    with pytest.raises(InputError, match="random weights"):
        integration.run(replace(request, given=frozenset({"recovery_steps"})))


def test_a_feature_pays_only_where_no_plain_model_is_as_fast_and_as_good():
    def row(configuration, heads, ratio, speed, stderr=0.001):
        return Result(
            "integration", "tiny", "real", configuration, level=1, heads_pruned=heads, configuration=configuration,
            perplexity_ratio=ratio, perplexity_ratio_stderr=stderr, tokens_per_s=speed,
        )  # fmt: skip

    rows = [
        row("minimal", 0.0, 1.0, 100.0),
        row("minimal", 0.5, 1.5, 130.0),
        row("no-baseline", 0.5, 1.4, 120.0),
        row("no-unet", 0.5, 1.2, 60.0),
        row("all", 0.5, 1.499, 125.0),
    ]
    said = features_that_pay(rows)
    assert "U-Net skips -6.7% perplexity, 0.92x the speed: pays;" in said.replace(" %", "%")
    assert "0.46x the speed: does not pay, as minimal is as fast and as good without 0%" in said
    assert said.endswith("0.96x the speed: does not pay.")
    assert features_that_pay(rows[:1]) == ""


def test_scaling_suite_tells_growth_and_memory(tmp_path, monkeypatch):
    spec = spec_of("gpt2")
    save_checkpoint(filled_decoder(spec), tmp_path / "shape", None, Record())
    asked = []
    monkeypatch.setattr(scaling, "measure_peak_memory", lambda request: asked.append(request) or 100.0)
    rows = scaling.run(request_of(filled_decoder(spec), shapes=(str(tmp_path / "shape"), "tiny")))
    assert [row.configuration for row in rows] == ["gates", "all, rank 16", "all, full rank"] * 2
    assert rows[0].growth == pytest.approx(spec.n_head_total / spec.parameter_count())
    gates, low_rank, full_rank = (row.growth or 0 for row in rows[:3])
    assert gates < low_rank < full_rank
    variants = [("minimal", None), ("all", 16), ("all", None)]
    places = (str(tmp_path / "shape"), "tiny")
    assert [(one.model, one.configuration, one.rank) for one in asked] == [(p, *v) for p in places for v in variants]
    assert all(row.parameters_before == spec.parameter_count() and row.weights == "random" for row in rows)
    assert "100" in tables(rows)[0].rows[0][-1]
    with pytest.raises(InputError, match="scaling suite needs a model without"):
        scaling.run(request_of(integrate(filled_decoder(spec), rank=2)))


def test_memory_is_that_of_the_integrated_model(tmp_path, capsys):
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "shape", None, Record())
    memory._serve(memory.MemoryRequest(str(tmp_path / "shape"), 0, "level 1", 4, 2, configuration="all", rank=2))
    assert float(capsys.readouterr().out.splitlines()[-1]) > 1
