"""The public functions: every command has one of the same name, and `Model` goes through them."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sentinel
from sentinel.api import model as model_module
from sentinel.cli import COMMANDS
from sentinel.errors import InputError

NO_TEXT = {"criterion": "magnitude", "compensate": False}
NOT_FUNCTIONS = {"cache", "chat", "serve", "ui"}  # about this machine, or they last until they are ended


def settings() -> sentinel.PruningSettings:
    return sentinel.PruningSettings(**NO_TEXT)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - NOT_FUNCTIONS))
def test_every_command_is_a_typed_function(command: str) -> None:
    function = getattr(sentinel, command)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert inspect.getdoc(function)
    assert command in dir(sentinel) and command in sentinel.__all__


def test_dir_is_what_can_be_had() -> None:
    assert set(sentinel.__all__) <= set(dir(sentinel))
    for name in sentinel.__all__:
        assert getattr(sentinel, name) is not None
    with pytest.raises(AttributeError, match="no_such_verb"):
        _ = sentinel.no_such_verb  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_sentinel_imports_nothing_heavy() -> None:
    code = "import sys, sentinel; dir(sentinel); print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_docstring_examples() -> None:
    assert doctest.testmod(model_module, optionflags=doctest.ELLIPSIS).attempted > 0
    assert doctest.testmod(model_module, optionflags=doctest.ELLIPSIS).failed == 0


def test_a_model_is_pruned_saved_loaded_and_runs_the_same(worded: str, tmp_path: Path) -> None:
    model = sentinel.load(worded)
    before = model.spec.n_head_total
    pruned = model.prune(heads=0.5, settings=settings())
    assert pruned.spec.n_head_total < before and model.spec.n_head_total == before
    folder = pruned.save(tmp_path / "pruned")
    again = sentinel.load(folder)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(pruned.decoder(tokens), again.decoder(tokens))
    assert again.record == pruned.record and [step.kind for step in again.record.steps] == ["pruned"]
    assert again.generate("a b", max_new_tokens=4, raw=True) == pruned.generate("a b", max_new_tokens=4, raw=True)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_generate_at_every_level(worded: str, level: int) -> None:
    model = sentinel.load(worded)
    assert model.generate("a b c", max_new_tokens=5, level=level) == sentinel.generate(
        worded, "a b c", max_new_tokens=5
    )


def test_a_quantised_model_runs_is_saved_and_loaded(worded: str, tmp_path: Path) -> None:
    quantised = sentinel.load(worded).quantize("int8")
    text = quantised.generate("a b c", max_new_tokens=5)
    folder = quantised.save(tmp_path / "int8")
    again = sentinel.load(folder)
    assert again.quantised is not None and again.precision == "int8" and again.record == quantised.record
    assert again.generate("a b c", max_new_tokens=5) == text
    with pytest.raises(InputError, match="is quantised"):
        again.prune(heads=0.5)
    copied = again.save(tmp_path / "copy")
    assert sentinel.load(copied).generate("a b c", max_new_tokens=5) == text


def test_an_elastic_models_widths_do_not_disturb_each_other(worded: str, tmp_path: Path) -> None:
    elastic = sentinel.load(worded).prune(elastic=[0.5], settings=settings())
    dense, half = elastic.engine(1), elastic.engine(1, heads=0.5)
    first = dense.prefill([[1, 2, 3]], 1)
    half.prefill([[1, 2, 3]], 1)
    assert (dense.prefill([[1, 2, 3]], 1) == first).all()
    assert elastic.engine(1) is dense
    for made in (elastic, elastic.quantize("int8"), sentinel.load(elastic.quantize("int8").save(tmp_path / "int8"))):
        assert made.generate("a b c", heads=0.5, max_new_tokens=3) is not None
        with pytest.raises(InputError, match="stored"):
            made.engine(heads=0.25)


def test_recover_leaves_the_model_that_it_was_given(worded: str, letters: dict[str, str]) -> None:
    teacher = sentinel.load(worded)
    pruned = teacher.prune(heads=0.5, settings=settings())
    before = {name: tensor.clone() for name, tensor in pruned.decoder.state_dict().items()}
    recovered = pruned.recover(
        teacher, text=letters["calibration"], tokens=512, held_out_tokens=64, length=16,
        settings=sentinel.RecoverySettings(steps=2, bf16=False),
    )  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.decoder.state_dict().items())
    assert recovered.recovery is not None and len(recovered.recovery.steps) == 2
    assert [step.kind for step in recovered.record.steps] == ["pruned", "recovered"]


def test_integrate_and_evaluate(worded: str, letters: dict[str, str]) -> None:
    model = sentinel.load(worded)
    integrated = model.integrate("no-baseline", rank=2)
    assert integrated.spec.integration is not None
    ours, theirs = (m.evaluate(letters["test"], context=32).perplexity for m in (model, integrated))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_importance_names_every_head(worded: str) -> None:
    order = sentinel.importance(worded, settings=settings())
    assert [len(layer) for layer in order.group_ranks] == [la.n_kv_head for la in sentinel.load(worded).spec.layers]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m.prune(), "say what to remove"),
        (lambda m: m.prune(heads=0.5, max_memory=1.0), "say what to remove"),
        (lambda m: m.quantize("int3"), "int3"),
        (lambda m: m.integrate("most"), "most"),
        (lambda m: m.engine(7), "level 7"),
        (lambda m: m.generate([{"role": "user", "content": "a"}], raw=True), "chat messages"),
        (lambda m: m.generate([{"role": "user", "content": "a"}]), "chat template"),
    ],
)
def test_bad_arguments_are_one_sentence(worded: str, call, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        call(sentinel.load(worded))
    assert "\n" not in str(error.value)
