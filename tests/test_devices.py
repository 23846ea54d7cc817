"""Every tensor is made where the model is: PyTorch's default device is "meta" here, and all that is explicit is on the CPU.

A tensor that is made without a device holds no values then, so that whatever uses it fails. It is what happens with a model
on an accelerator, without needing one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, letter_tokenizer

from sentinel.adapt.cycles.controller import Controller, ControllerSettings
from sentinel.adapt.integration import integrate
from sentinel.adapt.pruning.calibrate import calibrate
from sentinel.adapt.pruning.compact import compact, expand_kv
from sentinel.adapt.pruning.criteria import NAMES, criterion_named
from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.recovery.recover import recover
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.text.corpora import Windows, load_texts, sample_windows
from sentinel.api.changing import importance
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.sources import LoadedModel, load
from sentinel.infer.calibration_text import calibration_windows
from sentinel.infer.generate import generate_tokens
from sentinel.infer.lookup import PromptLookup
from sentinel.infer.native import NativeEngine
from sentinel.infer.opening import make_engine
from sentinel.infer.pack import pack, pack_width
from sentinel.infer.torch.static import StaticTorchEngine
from sentinel.measure.judge import Judge
from sentinel.measure.latency import measure_latencies
from sentinel.measure.perplexity import evaluate
from sentinel.measure.profiling.profile import profile_engine
from sentinel.measure.runner import run_suites
from sentinel.measure.suites import SUITES
from sentinel.measure.suites.engines import Engines
from sentinel.measure.suites.request import Request, SuiteSettings
from sentinel.measure.sweep import Job, SweepSettings, run_job
from sentinel.measure.text_metrics import sample_variety
from sentinel.models.record import Record
from sentinel.progress import console


@pytest.fixture(autouse=True)
def default_device_without_values() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def on_the_cpu(call):
    """For a library that itself makes tensors on the default device."""

    def called(*arguments):
        with torch.device("cpu"):
            return call(*arguments)

    return called


@pytest.fixture
def model():
    return filled_decoder(spec_of("llama-grouped"))


@pytest.fixture
def windows(model):
    generator = torch.Generator("cpu").manual_seed(0)
    tokens = torch.randint(0, model.spec.vocab_size, (8, 24), generator=generator, device="cpu")
    return Windows(tokens, ("a",))


def test_models_are_loaded_and_saved(worded, tmp_path):
    loaded = load(worded)
    assert loaded.decoder.device.type == "cpu"
    save_checkpoint(loaded.decoder, tmp_path / "again", loaded.tokenizer, loaded.record)
    again = load_checkpoint(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in loaded.decoder.state_dict().items())
    assert load("gpt2", random_weights=0).decoder.device.type == "cpu"


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_every_level_generates(level, positions):
    engine = make_engine(filled_decoder(unequal_spec(positions)), level)
    assert len(list(generate_tokens(engine, [[5, 9, 2], [7]], 4))) == 4
    assert len(list(generate_tokens(engine, [[5, 9, 5, 9]], 6, proposer=PromptLookup()))) == 6


def test_the_static_engine_of_accelerators_generates(model):
    engine = StaticTorchEngine(model)
    steps = list(generate_tokens(engine, [[5, 9, 2], [7]], 4))
    assert steps == list(generate_tokens(make_engine(model, 1), [[5, 9, 2], [7]], 4))


@pytest.mark.parametrize("criterion", NAMES)
def test_every_criterion_ranks_and_compensation_solves(criterion, model, windows):
    dense = expand_kv(model)
    pruner = Pruner(dense, PruningSettings(criterion), windows)
    heads = 0.5
    neurons = 0.25 if criterion_named(criterion).scores_neurons else 0.0
    order = pruner.order(heads, neurons)
    plans = [order.plan(heads, neurons)]
    (pruned,) = pruner.apply(plans)
    assert pruned.device.type == "cpu"
    elastic = make_elastic(dense, order, plans, [pruned])
    elastic.set_width(heads, neurons)
    assert len(list(generate_tokens(make_engine(elastic, 1), [[5, 9]], 2))) == 2


def test_statistics_are_taken_up_again(model, windows, tmp_path):
    first = calibrate(model, windows, tmp_path / "sums")
    again = calibrate(model, windows, tmp_path / "sums")
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in first.tensors().items())


def test_heads_are_ranked_and_jobs_of_a_sweep_are_judged(worded, letters):
    order = importance(worded, calibration=letters["calibration"], settings=PruningSettings("fisher", tokens=256))
    assert len(order.group_ranks) == 3
    texts = {"calibration": letters["calibration"], "text": letters["test"]}
    settings = SweepSettings((0.5,), calibration_tokens=256, eval_tokens=64, context=32, **texts)
    assert run_job(settings, Job(worded)).error is None
    outcome = run_job(settings, Job(worded, "fisher", 0))
    assert outcome.error is None and len(outcome.rows) == 2


def test_a_model_writes_its_own_text(worded):
    assert calibration_windows(load(worded), "self", 64).tokens.device.type == "cpu"


def test_models_are_quantised(model, windows):
    engine = NativeEngine(pack(integrate(model), "int4", input_grams(integrate(model), windows.tokens)))
    assert len(list(generate_tokens(engine, [[5, 9]], 2))) == 2
    engine.release()
    assert pack_width(model, "int8").projections is None


def test_skips_and_a_baseline_are_added(model):
    made = integrate(model, rank=None)
    assert len(list(generate_tokens(make_engine(made, 1), [[5, 9, 2], [7]], 3))) == 3


def test_recovery_learns_one_step(model, windows):
    pruner = Pruner(model, PruningSettings("magnitude", compensate=False), None)
    student = compact(model, pruner.order(0.5, 0.0).plan(0.5))
    settings = RecoverySettings(steps=1, batch=2, evaluations=1, state_weight=0.1)
    found = recover(student, model, windows.tokens[:6], windows.tokens[6:], settings)
    assert len(found.losses) == 1


def test_the_controller_goes_through_a_cycle(model, windows):
    from sentinel.adapt.cycles.budget import make_budget, share_costs

    dense = expand_kv(model)
    settings = ControllerSettings(RecoverySettings(steps=2, batch=2, evaluations=1), cycles=2, overshoot=0.2, warm_up=1)
    parts = (windows.tokens, windows.tokens[:6], windows.tokens[6:])
    budget = make_budget("0.6", {"heads": share_costs(dense.spec)})
    record = Controller(dense, *parts, budget, settings).run(lambda student, best: None)
    assert record.cycles


def test_models_are_judged(worded, letters):
    loaded, texts = load(worded), load_texts(letters["test"], "test")
    tokenizer = loaded.require_tokenizer()
    found = evaluate(loaded.decoder, tokenizer, texts, context=32, max_tokens=64, teacher=loaded.decoder)
    assert found.kl == 0
    judge = Judge(loaded.decoder, tokenizer, texts, loaded.record, tokens_per_text=64, context=32)
    assert judge(loaded.decoder)["perplexity_ratio"] == 1
    engine = make_engine(loaded.decoder, 3)
    assert evaluate(engine, tokenizer, texts, context=32, max_tokens=64).perplexity > 1
    assert sample_variety(engine, tokenizer, texts, prompt_tokens=8, new_tokens=4).distinct_1 > 0
    assert sample_windows(texts, tokenizer, 64, 32).tokens.device.type == "cpu"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_levels_are_profiled(level, model):
    found = profile_engine(make_engine(model, level), [5, 9, 2, 7], 3, 1)
    assert found.step_ms > 0


def test_latencies_are_measured(model):
    assert measure_latencies(model, context=8, rounds=1).dense_ms > 0


SMALL = {
    "prompt_tokens": 6, "new_tokens": 2, "rounds": 1, "heads": (0.0, 0.5), "lengths": (48,), "batches": (2,),
    "calibration_tokens": 256, "eval_tokens": 32, "criteria": ("fisher",), "recovery_steps": 1, "shapes": (),
    "drafts": ("int8", "lookup"),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name for name in SUITES if name not in ("peers", "load", "decode", "scaling", "serve")]
)
def test_suites_measure(name, letters, monkeypatch):
    """Without those that ask processes of their own, which have their own default device."""
    spec = dataclasses.replace(spec_of("llama-grouped"), vocab_size=17, max_seq_len=96)
    loaded = LoadedModel("m", filled_decoder(spec), letter_tokenizer(), Record())
    from sentinel.measure.hugging_face import HuggingFaceReference

    for name_of in (
        "__init__",
        "generate",
    ):  # transformers itself refuses "meta", and makes masks on the default device
        monkeypatch.setattr(HuggingFaceReference, name_of, on_the_cpu(getattr(HuggingFaceReference, name_of)))
    texts = {"text": letters["test"], "calibration": letters["calibration"]}
    given = {key: value for key, value in {**SMALL, **texts}.items() if key in SUITES[name].options}
    found = run_suites(loaded, {name: given}, source="m", quick=True)
    assert found.results and found.environment.device == "cpu"


# --- an accelerator that is not there: what a model on the device "meta" would be run by --------------------------------


@pytest.fixture
def elsewhere(model):
    loaded = LoadedModel("m", model.to("meta"), letter_tokenizer(), Record(weights="random"))
    return Request(loaded, "m", 0, engines=Engines(loaded), settings=SuiteSettings())


def test_pruned_level_2_runs_on_the_device_of_the_model(elsewhere, monkeypatch):
    monkeypatch.setattr("sentinel.measure.suites.engines.warm_up", lambda _: None)
    monkeypatch.setattr("sentinel.models.rows.require_finite", lambda *_: None)  # meta holds no values
    subject = elsewhere.engines.at(2, heads=0.5)
    assert isinstance(subject.engine, StaticTorchEngine) and subject.engine.decoder.device.type == "meta"
    assert subject.engine.spec.n_head_total < elsewhere.loaded.spec.n_head_total


def test_levels_of_the_cpu_alone_are_left_out_elsewhere_and_refused_when_asked_for(elsewhere, capsys, monkeypatch):
    monkeypatch.setattr(console, "quiet", False)  # an earlier test may have asked for quiet
    assert elsewhere.levels == (0, 1, 2) and elsewhere.precisions == ()
    assert "level 3 runs on the CPU only, and is left out on meta" in capsys.readouterr().err
    with pytest.raises(InputError, match="level 3 runs on the CPU; on meta there are levels 0 to 2"):
        elsewhere.engines.at(3, "int8")
    asked = Request(**{**vars(elsewhere), "given": frozenset({"levels", "precision"})})
    assert 3 in asked.levels
    with pytest.raises(InputError, match="level 3 runs on the CPU only, not on meta"):
        asked.precisions  # noqa: B018


@pytest.mark.parametrize("name", ["load", "peers", "draft", "serve"])
def test_suites_of_the_cpu_alone_are_refused_elsewhere(name, elsewhere):
    with pytest.raises(InputError, match="on the CPU only, not on meta; leave out --device"):
        SUITES[name].run(elsewhere)


def test_peak_memory_is_asked_of_the_device(elsewhere, monkeypatch):
    from sentinel.measure import memory

    asked = []
    monkeypatch.setattr(memory, "ask", lambda module, request, what: asked.append(request))
    request = memory.MemoryRequest("m", 0, "level 2", 4, 2, device="cuda")
    assert memory.measure_peak_memory(request) is None
    assert asked == [request]


def test_a_compiled_graph_is_not_profiled_as_if_it_had_parts(elsewhere):
    with pytest.raises(InputError, match="level 2 on meta is one compiled graph"):
        profile_engine(StaticTorchEngine(elsewhere.loaded.decoder), [1, 2], 2, 1)


def test_levels_of_an_elastic_model_move_with_it(model, windows):
    pruner = Pruner(model, PruningSettings("magnitude"), windows)
    order = pruner.order(0.5, 0.0)
    plans = [order.plan(0.5)]
    elastic = make_elastic(model, order, plans, pruner.apply(plans))
    elastic.set_width(0.5)
    expected = elastic(windows.tokens).double()
    elastic.set_width(0.0)
    moved = elastic.double()
    moved.set_width(0.5)
    assert {parameter.dtype for parameter in moved.parameters()} == {torch.float64}
    assert torch.allclose(moved(windows.tokens), expected, atol=1e-4)
    moved.set_width(0.0)
    assert {parameter.dtype for parameter in moved.parameters()} == {torch.float64}


def test_peak_memory_needs_no_module_that_windows_lacks():
    import subprocess
    import sys

    code = "import sys; sys.modules['resource'] = None; from sentinel.measure.memory import peak_rss_mb"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
