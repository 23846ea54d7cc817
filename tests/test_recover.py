"""Recovery: what learns, what stays, and that interruptions leave no trace."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import spec_of
from helpers import LETTERS, largest_difference, letter_tokenizer
from safetensors import SafetensorError
from torch.nn import functional

from sentinel.adapt.integration import integrate
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.recovery.distillation import TeacherTargets, divergence, judged, likeliest
from sentinel.adapt.recovery.recover import recover
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.recovery.state import HeldOut, Progress
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.files import MANIFEST
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.folder import read_record
from sentinel.formats.random_weights import random_decoder
from sentinel.models.decoder import Decoder
from sentinel.models.parts.head import Head
from sentinel.models.record import Pruned, Record, Recovered
from sentinel.models.spec import ModelSpec

SHORT = RecoverySettings(steps=12, train="projections", batch=4, learning_rate=3e-3, evaluations=2, bf16=False)


@pytest.fixture(autouse=True)
def one_thread():
    """Operations of these sizes wait for each other longer than they take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def teacher_model(vocab_size: int = 97) -> Decoder:
    """A decoder whose predictions are far from uniform, and whose activations can be trained."""
    decoder = random_decoder(ModelSpec(**{**vars(spec_of("llama-multi-head-tied")), "vocab_size": vocab_size}), 0)
    with torch.no_grad():
        for parameter_name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 if parameter_name.startswith("embed") else 6)
    return decoder


def pruned(dense: Decoder, heads: float = 0.5) -> Decoder:
    pruner = Pruner(dense, PruningSettings(criterion="magnitude", compensate=False), None)
    return pruner.apply([pruner.order(heads, 0.0).plan(heads)])[0]


def elastic_model(dense: Decoder, levels: tuple[float, ...] = (0.3, 0.6)) -> Decoder:
    pruner = Pruner(dense, PruningSettings(criterion="magnitude", compensate=False), None)
    order = pruner.order(max(levels), 0.0)
    plans = [order.plan(level) for level in levels]
    return make_elastic(dense, order, plans, pruner.apply(plans))


def windows(count: int, length: int = 17, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 97, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("of_head", [{}, {"scale": 0.5, "cap": 3.0}], ids=["plain", "bias-scale-cap"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_and_its_gradient_are_those_of_the_bucketed_distributions(temperature, of_head):
    generator = torch.Generator().manual_seed(0)
    states, other = (torch.randn(9, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(31, *size, generator=generator, dtype=torch.float64) for size in ((12,), ()))
    head = Head(weight, bias if of_head else None, **of_head)

    def logits(x: torch.Tensor) -> torch.Tensor:
        z = of_head.get("scale", 1.0) * (x @ weight.T + (bias if of_head else 0))
        return of_head["cap"] * torch.tanh(z / of_head["cap"]) if of_head else z

    tokens = logits(other).topk(5, -1).indices
    log_probs = (logits(other) / temperature).log_softmax(-1).gather(-1, tokens)
    states.requires_grad_()

    def buckets(log_p: torch.Tensor) -> torch.Tensor:
        top = log_p.gather(-1, tokens)
        return torch.cat((top, torch.log1p(-top.exp().sum(-1, keepdim=True))), -1)

    q = buckets((logits(states) / temperature).log_softmax(-1))
    p = buckets((logits(other) / temperature).log_softmax(-1))
    expected = functional.kl_div(q, p, log_target=True, reduction="batchmean") * temperature**2
    (gradient,) = torch.autograd.grad(expected, states)
    targets = TeacherTargets(tokens, log_probs)
    found = divergence(states, head, targets, temperature)
    (found_gradient,) = torch.autograd.grad(found, states)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(found_gradient, gradient, atol=1e-5)
    kl = judged(states, head, targets, temperature)
    assert kl.item() / 9 * temperature**2 == pytest.approx(expected.item(), rel=1e-4)


def test_a_model_diverges_by_nothing_from_itself():
    dense = teacher_model()
    states = dense.final_norm(dense.hidden_states(windows(3))).flatten(0, 1).detach().requires_grad_()
    targets = TeacherTargets(*likeliest(states.detach(), dense.head, 20, 1.0))
    loss = divergence(states, dense.head, targets, 1.0)
    assert abs(loss.item()) < 1e-5
    assert torch.autograd.grad(loss, states)[0].abs().max() < 1e-5


@pytest.mark.parametrize("train", ["biases", "projections", "all"])
def test_recovery_improves_held_out_divergence(train):
    dense = teacher_model()
    student = pruned(dense)
    embedding = student.embed.weight.clone()
    found = recover(
        student,
        dense,
        windows(64),
        windows(8, seed=1),
        dataclasses.replace(SHORT, steps=25, train=train, learning_rate=1e-2),
    )
    assert found.best.mean_kl < 0.95 * found.held_out[0].mean_kl
    assert torch.equal(student.embed.weight, embedding)
    assert found.tokens == 25 * 4 * 16 and len(found.losses) == 25


@pytest.mark.parametrize("train", ["projections", "all"])
def test_fusions_learn_and_the_baseline_stays(train):
    dense = teacher_model()
    student = integrate(pruned(dense), "all", rank=2, baseline=dense)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    settings = dataclasses.replace(SHORT, steps=25, train=train, learning_rate=1e-2)
    found = recover(student, dense, windows(64), windows(8, seed=1), settings)
    assert found.best.mean_kl < 0.95 * found.held_out[0].mean_kl
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    fusions = {name for name, _ in student.named_parameters() if name.startswith("integration.")}
    assert fusions <= changed
    assert not any(name.startswith("baseline.") for name in changed)


def test_an_elastic_model_with_skips_is_refused():
    dense = teacher_model()
    with pytest.raises(InputError, match="share its skips and baseline"):
        recover(integrate(elastic_model(dense), rank=2), dense, windows(8), windows(4), SHORT)


def test_resumed_run_equals_uninterrupted(tmp_path):
    settings = dataclasses.replace(SHORT, checkpoint_minutes=0.0, accumulate=2)
    dense = teacher_model()
    whole, resumed = pruned(dense), pruned(dense)
    expected = recover(whole, dense, windows(24), windows(8, seed=1), settings)

    def stop(step):
        if step.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(resumed, dense, windows(24), windows(8, seed=1), settings, folder=tmp_path / "run", after_step=stop)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines + '{"step": 8, "loss"')
    resumed = pruned(dense)  # a new process knows nothing of the weights so far
    found = recover(resumed, dense, windows(24), windows(8, seed=1), settings, folder=tmp_path / "run")
    assert found.losses == expected.losses
    assert [h.kl for h in found.held_out] == [h.kl for h in expected.held_out]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 13))


def test_elastic_levels_improve_and_the_dense_level_stays():
    dense = teacher_model()
    elastic = elastic_model(dense)
    tokens = windows(4, seed=2)
    before = elastic(tokens)
    found = recover(
        elastic, dense, windows(64), windows(8, seed=1), dataclasses.replace(SHORT, steps=40, learning_rate=3e-3)
    )
    assert torch.equal(elastic(tokens), before)
    first = found.held_out[0]
    assert list(first.kl) == ["heads 0.3", "heads 0.6"]
    assert all(found.best.kl[label] < 0.97 * first.kl[label] for label in first.kl)


def test_levels_without_projections_of_their_own_get_them(tmp_path):
    dense = teacher_model()
    elastic = elastic_model(dense)
    bare = [dataclasses.replace(level, projections={}) for level in elastic.widths]
    bare_elastic = elastic
    bare_elastic.store_widths(bare)
    tokens = windows(2)
    bare_elastic.set_width(0.6)
    before = bare_elastic(tokens)
    recover(
        bare_elastic, dense, windows(8), windows(4, seed=1), dataclasses.replace(SHORT, steps=2, learning_rate=1e-9)
    )
    save_checkpoint(bare_elastic, tmp_path / "e", None, Record())
    loaded = load_checkpoint(tmp_path / "e")
    loaded.set_width(0.6)
    assert largest_difference(loaded(tokens), before) < 1e-5


def test_bfloat16_and_hidden_states_learn_too(tmp_path):
    pytest.importorskip("tensorboard")
    dense = teacher_model()
    settings = dataclasses.replace(SHORT, bf16=True, state_weight=1.0, temperature=2.0, learning_rate=1e-2)
    settings = dataclasses.replace(settings, tensorboard=True)
    found = recover(pruned(dense), dense, windows(32), windows(8, seed=1), settings, folder=tmp_path)
    assert list((tmp_path / "tensorboard").iterdir())
    assert found.best.mean_kl < found.held_out[0].mean_kl


def test_chosen_parameters_learn_at_their_own_rate():
    dense = teacher_model()
    student = pruned(dense)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    recover(
        student, dense, windows(32), windows(4, seed=1), dataclasses.replace(SHORT, learning_rate=0.01),
        trainable=lambda name, _: name.endswith("out_proj.weight"), rate_multiplier=lambda name: float("layers.1." in name),
    )  # fmt: skip
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"layers.1.attn.out_proj.weight"}
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_saved(tmp_path):
    dense = teacher_model()
    student = pruned(dense)
    settings = dataclasses.replace(SHORT, checkpoint_minutes=0.0)

    def spoil(step):
        if step.step == 5:
            with torch.no_grad():
                student.final_norm.weight.fill_(float("nan"))

    with pytest.raises(InputError, match="step 6 is NaN or infinite; lower the learning rate"):
        recover(student, dense, windows(16), windows(4, seed=1), settings, folder=tmp_path, after_step=spoil)
    settings = dataclasses.replace(settings, learning_rate=1e-3)
    found = recover(pruned(dense), dense, windows(16), windows(4, seed=1), settings, folder=tmp_path)
    assert len(found.losses) == 12 and all(map(math.isfinite, found.losses))


def test_early_stopping_returns_the_best():
    dense = teacher_model()
    student = pruned(dense)
    settings = dataclasses.replace(SHORT, steps=40, evaluations=20, patience=2, learning_rate=3.0)
    found = recover(student, dense, windows(16), windows(4, seed=1), settings)
    assert len(found.losses) < 40
    assert found.best.step == 0
    before = pruned(dense).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_start_that_was_better_does_not_end_it():
    def after(*divergences: float) -> Progress:
        return Progress(held_out=[HeldOut(i, float(i), {"all": kl}, {}) for i, kl in enumerate(divergences)])

    assert not after(0.2).is_stale(1)
    assert not after(0.2, 0.28, 0.27, 0.25, 0.22).is_stale(2)  # the learning rate is falling, the divergence too
    assert not after(0.2, 0.28, 0.29).is_stale(2)
    assert after(0.2, 0.28, 0.29, 0.3).is_stale(2)
    assert not after(0.2, 0.28, 0.29, 0.27).is_stale(2)


def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sentinel.formats.weight_files.save_file", full)
    dense = teacher_model()
    with pytest.raises(InputError, match=r"can't be written .*No space left"):
        recover(pruned(dense), dense, windows(16), windows(4, seed=1), SHORT, folder=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_unusable_input_is_refused(tmp_path):
    dense = teacher_model()
    other = random_decoder(ModelSpec(**{**vars(dense.spec), "vocab_size": 98}), 0)
    with pytest.raises(InputError, match="the same vocabulary"):
        recover(pruned(dense), other, windows(8), windows(4), SHORT)
    with pytest.raises(InputError, match="give more text"):
        recover(pruned(dense), dense, windows(3), windows(4), SHORT)
    with pytest.raises(InputError, match="nothing of this model is trainable"):
        recover(pruned(dense), dense, windows(8), windows(4), SHORT, trainable=lambda *_: False)
    with pytest.raises(InputError, match="steps or of minutes"):
        RecoverySettings()
    for name in ("checkpoint_minutes", "state_weight", "weight_decay"):
        with pytest.raises(InputError, match=f"{name.replace('_', ' ')} must not be below 0"):
            RecoverySettings(steps=1, **{name: -1.0})
    with pytest.raises(InputError, match="learning rate must be above 0"):
        RecoverySettings(steps=1, learning_rate=0.0)
    settings = dataclasses.replace(SHORT, steps=2, checkpoint_minutes=0.0)
    recover(pruned(dense), dense, windows(8), windows(4), settings, folder=tmp_path)
    with pytest.raises(InputError, match="holds a recovery of another model, text or settings"):
        recover(pruned(dense), dense, windows(8), windows(4), dataclasses.replace(settings, seed=1), folder=tmp_path)


PRUNED = Record().then(Pruned(source="teacher", criterion="random", heads=(0.5,), neurons=(0.0,)))


@pytest.fixture(scope="module")
def worded(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Folders of a tiny teacher and its pruned student with a tokenizer of letters, and a text of letters."""
    folder = tmp_path_factory.mktemp("worded")
    dense = teacher_model(vocab_size=17)
    for name, model in (("teacher", dense), ("student", pruned(dense))):
        save_checkpoint(model, folder / name, letter_tokenizer(), PRUNED)
    rng = random.Random(0)
    (folder / "text.txt").write_text(" ".join(rng.choice(LETTERS) for _ in range(2000)))
    return folder / "student", folder / "teacher", folder / "text.txt"


def arguments(worded, output: Path, *more: str) -> list[str]:
    student, teacher, text = worded
    sizes = "--steps 4 --tokens 640 --held-out-tokens 64 --length 16 --batch 2 --evaluations 2 --threads 1".split()  # noqa: SIM905
    return ["recover", str(student), "-o", str(output), "--teacher", str(teacher), "--text", str(text), *sizes, *more]


def test_command_writes_a_model_that_says_how_it_was_made(worded, tmp_path, capsys):
    assert main(arguments(worded, tmp_path / "out")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")
    before, step = read_record(tmp_path / "out").steps
    assert before == PRUNED.steps[0] and isinstance(step, Recovered)
    assert (step.steps, step.tokens, step.teacher) == (4, 4 * 2 * 15, "teacher")
    assert sorted(path.name for path in (tmp_path / "out.recovery").iterdir()) == ["metrics.jsonl", MANIFEST]
    assert main(["evaluate", str(tmp_path / "out"), "--text", str(worded[2])]) == 2
    assert "trained on" in capsys.readouterr().err


def test_command_refuses_bad_input(worded, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for more, expected in (
        (["--tokens", "99999"], "too short"),
        (["--length", "65"], "longer than the context"),
        (["--train", "everything"], "is not known"),
        (["--state", str(tmp_path / "file")], "is a file"),
        (["--minutes", "1"], "not allowed with"),
    ):
        try:
            code = main(arguments(worded, tmp_path / "out", *more))
        except SystemExit as exit:
            code = exit.code
        assert code == 2 and expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_launched_processes_train_one_model(processes, worded, tmp_path):
    launchers = {  # Accelerate leaves several processes on CPUs of one machine to torchrun
        1: ["accelerate.commands.launch", "--cpu", "--mixed_precision", "no", "--dynamo_backend", "no"],
        2: ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }
    command = [sys.executable, "-m", *launchers[processes], "-m", "sentinel"]
    command += arguments(worded, tmp_path / "out", "--no-bf16")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    step = read_record(tmp_path / "out").steps[-1]
    assert isinstance(step, Recovered) and step.tokens == processes * 4 * 2 * 15
