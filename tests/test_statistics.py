"""Statistics of calibration: shared, taken up again, and kept in a file that earlier versions wrote too."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder, some_order, some_tokens
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sentinel.adapt.pruning import calibrate as calibration
from sentinel.adapt.pruning.digest import digests, spec_digest
from sentinel.adapt.pruning.plan import PruningPlan
from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.pruning.subject import CalibrationText
from sentinel.adapt.text.corpora import Windows
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.spec import ModelSpec

# Shapes by the names that they had when specifications had version 1.
EARLIER = {
    "gpt2": "d2fe2edf9e1e",
    "gpt2-relu-untied": "ace4ee03fe37",
    "llama-grouped": "d60ef1af3698",
    "llama-rope-llama3": "a986b132a759",
    "llama-multi-query-biases": "2b3824b61b05",
}


def windows_of(spec, count=12, length=24, seed=3) -> Windows:
    return Windows(some_tokens(spec, batch=count, length=length, seed=seed), ("a",))


def evenly_filled(spec: ModelSpec) -> Decoder:
    """Weights that are the same with every version of torch."""
    decoder = Decoder.empty(spec).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_((torch.arange(parameter.numel()) % 64 / 64).view_as(parameter))
    return decoder.eval()


def test_statistics_are_gathered_once_for_all_who_share_them(monkeypatch):
    calls = []
    real = calibration.calibrate
    monkeypatch.setattr("sentinel.adapt.pruning.subject.calibrate", lambda *a: calls.append(1) or real(*a))
    dense = filled_decoder(spec_of("gpt2"))
    pruner = Pruner(dense, PruningSettings("stepwise"), windows_of(dense.spec))
    for name in ("random", "fisher", "gradient", "entropy"):
        other = pruner.with_settings(PruningSettings(name))
        other.order(0.5, 0.0)
        other.with_compensation(False).order(0.5, 0.0)
    assert len(calls) == 1


def test_the_record_of_pruning_tells_how_much_was_calibrated_on():
    dense = filled_decoder(spec_of("gpt2"))
    windows = windows_of(dense.spec, count=2)
    for given, texts, tokens in ((windows, "t", windows.tokens.numel()), (None, "", 0)):
        pruner = Pruner(dense, PruningSettings("magnitude", compensate=False), given)
        order = pruner.order(0.5, 0.0)
        step = pruner.step("m", order, [order.plan(0.5)], texts="t")
        assert (step.texts, step.tokens, step.heads, step.compensated) == (texts, tokens, (0.5,), False)


def test_a_text_with_a_token_that_the_model_does_not_have_is_refused():
    dense = filled_decoder(spec_of("gpt2"))
    windows = windows_of(dense.spec, count=2)
    last = dense.spec.vocab_size - 1
    CalibrationText(dense, dataclasses.replace(windows, tokens=windows.tokens.clone().fill_(last)))
    with pytest.raises(InputError, match=f"the text holds token {last + 1}, but the model has only {last + 1} tokens"):
        CalibrationText(dense, dataclasses.replace(windows, tokens=windows.tokens.clone().fill_(last + 1)))


def test_calibration_resumes_to_the_same_statistics(tmp_path, monkeypatch):
    dense = filled_decoder(spec_of("llama-grouped"))
    windows = windows_of(dense.spec)
    whole = calibration.calibrate(dense, windows)
    monkeypatch.setattr(calibration, "SAVE_EVERY_SECONDS", 0.0)
    calls = {"left": 3 * 6}  # three batches of three layers of two halves
    real = calibration._add

    def interrupted(*arguments):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(calibration, "_add", interrupted)
    file = tmp_path / "s.safetensors"
    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate(dense, windows, file)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["tokens"] == str(3 * calibration.BATCH * 24)
    monkeypatch.setattr(calibration, "_add", real)
    resumed = calibration.calibrate(dense, windows, file)
    assert resumed.tokens == whole.tokens == windows.tokens.numel()
    for name, tensor in whole.tensors().items():
        assert torch.allclose(resumed.tensors()[name], tensor, rtol=1e-5), name
    with pytest.raises(InputError, match="another model or text"):
        calibration.calibrate(dense, windows_of(dense.spec, seed=9), file)


def test_the_statistics_file_keeps_its_names(tmp_path):
    """Files that earlier versions wrote: named tensors of safetensors, and three fields beside them."""
    dense = filled_decoder(spec_of("llama-grouped"))
    windows = windows_of(dense.spec)
    file = tmp_path / "s.safetensors"
    found = calibration.calibrate(dense, windows, file)
    kinds = ("attn_gram", "mlp_gram", "group_gradient", "group_fisher", "entropy", "neuron_gradient", "neuron_fisher")
    tensors = load_file(file)
    assert set(tensors) == {f"{kind}.{index}" for kind in kinds for index in range(3)}
    assert tensors["attn_gram.2"].shape == (48, 48) and tensors["mlp_gram.0"].shape == (80, 80)
    assert tensors["entropy.1"].shape == (2,) and tensors["neuron_fisher.1"].shape == (80,)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert set(metadata) == {"identity", "tokens", "fingerprints"}
    assert int(metadata["tokens"]) == found.tokens and json.loads(metadata["fingerprints"]) == ["a"]
    save_file({**tensors, "entropy.1": torch.tensor([7.0, 8.0])}, file, metadata)
    assert calibration.calibrate(dense, windows, file).layers[1].entropy.tolist() == [7.0, 8.0]


def test_damaged_statistics_files_are_refused(tmp_path):
    dense = filled_decoder(spec_of("llama-grouped"))
    windows = windows_of(dense.spec)
    file = tmp_path / "s.safetensors"
    calibration.calibrate(dense, windows, file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    without = {name: tensor for name, tensor in tensors.items() if name != "mlp_gram.1"}
    for damaged in (without, {**tensors, "mlp_gram.1": torch.zeros(3, 3)}):
        save_file(damaged, file, metadata)
        with pytest.raises(InputError, match=r"s\.safetensors has no statistics mlp_gram\.1"):
            calibration.calibrate(dense, windows, file)
    file.write_text("nothing of the kind")
    with pytest.raises(InputError, match="is not a statistics file"):
        calibration.calibrate(dense, windows, file)


@pytest.mark.parametrize(("name", "earlier"), EARLIER.items())
def test_shapes_are_known_by_the_names_that_earlier_versions_gave(name, earlier):
    spec = spec_of(name)
    assert digests(spec) == (spec_digest(spec), earlier)
    plan = some_order(spec).plan(0.5)
    dataclasses.replace(plan, spec_digest=earlier).check(spec)
    with pytest.raises(InputError, match="another shape"):
        dataclasses.replace(plan, spec_digest="d2fe2edf9e1f").check(spec)


def test_shapes_that_earlier_versions_did_not_know_have_one_name():
    spec = spec_of("llama-grouped")
    attention = dataclasses.replace(spec.layers[1].attention, window=8)
    layers = (spec.layers[0], dataclasses.replace(spec.layers[1], attention=attention), spec.layers[2])
    assert len(digests(dataclasses.replace(spec, layers=layers))) == 1


@pytest.mark.parametrize(
    ("name", "identity"),
    [("gpt2", "6863949a7d6c39df01cce5e3"), ("llama-rope-llama3", "49750e09abdee758ce88fe5a")],
)
def test_a_statistics_file_of_an_earlier_version_is_taken_up(name, identity, tmp_path):
    decoder, file = evenly_filled(spec_of(name)), tmp_path / "s.safetensors"
    windows = Windows(torch.arange(96).view(4, 24), ("a",))
    calibration.calibrate(decoder, windows, file)
    tensors = {**load_file(file), "entropy.0": torch.full((decoder.spec.layers[0].n_kv_head,), 7.0)}
    save_file(tensors, file, {"identity": identity, "tokens": "96", "fingerprints": '["a"]'})
    assert calibration.calibrate(decoder, windows, file).layers[0].entropy[0] == 7.0
    save_file(tensors, file, {"identity": identity[::-1], "tokens": "96", "fingerprints": '["a"]'})
    with pytest.raises(InputError, match="another model or text"):
        calibration.calibrate(decoder, windows, file)


def test_plans_are_written_as_they_were():
    plan = PruningPlan.from_json(
        '{"spec_digest": "d2fe2edf9e1e", "criterion": "fisher", "heads": 0.5, "neurons": 0.25, '
        '"groups": [[1, 0], [], [2]], "kept_neurons": [[3], [4, 1], []]}'
    )
    assert plan.kept.groups == ((1, 0), (), (2,)) and plan.width.neurons == (1, 2, 0)
    assert json.loads(plan.to_json()) == {
        "spec_digest": "d2fe2edf9e1e",
        "criterion": "fisher",
        "heads": 0.5,
        "neurons": 0.25,
        "groups": [[1, 0], [], [2]],
        "kept_neurons": [[3], [4, 1], []],
    }
