"""Pruning of models that are larger than memory gives what pruning in memory gives."""

from __future__ import annotations

import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder

from sentinel.adapt.pruning.by_layers import order_by_layers, write_by_layers
from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.pruning.room import Room
from sentinel.adapt.text.corpora import Windows
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, open_checkpoint, save_checkpoint
from sentinel.models.record import Record

WINDOWS = Windows(torch.randint(0, 97, (9, 32), generator=torch.Generator().manual_seed(3)), ("a",))


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
@pytest.mark.parametrize("criterion", ["reconstruction", "magnitude", "random"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_it_is_the_model_that_pruning_in_memory_makes(name, criterion, scope, tmp_path):
    dense = filled_decoder(spec_of(name))
    save_checkpoint(dense, tmp_path / "dense", None, Record())
    settings = PruningSettings(criterion, scope=scope, floor_groups=1)
    pruner = Pruner(dense, settings, WINDOWS)
    expected = pruner.order(0.5, 0.4).plan(0.5, 0.4)
    stored, room = open_checkpoint(tmp_path / "dense", torch.float32), Room(tmp_path)
    plan = order_by_layers(stored, settings, WINDOWS.tokens, 0.5, 0.4, room).plan(0.5, 0.4)
    # Gram matrices are summed in another order: greedy removal may swap units that are hardly more or less important.
    swapped = [len(set(a) ^ set(b)) for a, b in zip(plan.kept.neurons, expected.kept.neurons, strict=True)]
    assert sum(swapped) <= (0.02 * sum(map(len, expected.kept.neurons)) if criterion == "reconstruction" else 0)
    (tmp_path / "made").mkdir()
    write_by_layers(stored, plan, WINDOWS.tokens, tmp_path / "made", tokenizer=None, record=Record(), room=room)
    made, (same,) = load_checkpoint(tmp_path / "made"), pruner.apply([plan])
    assert made.spec == same.spec
    with torch.no_grad():
        logits, exact = (model(WINDOWS.tokens) for model in (made, same))
    assert (logits - exact).abs().max() < 1e-5 * exact.abs().max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "made"]  # nothing that was spilled is left


def test_a_criterion_with_gradients_is_refused_by_name(tmp_path):
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "dense", None, Record())
    stored = open_checkpoint(tmp_path / "dense", torch.float32)
    with pytest.raises(
        InputError, match=r"criterion stepwise needs .*; layer by layer there are reconstruction, magni"
    ):
        order_by_layers(stored, PruningSettings(), WINDOWS.tokens, 0.5, 0.0)


def test_the_command_prunes_within_a_limit_and_refuses_one_that_is_too_low(worded, letters, tmp_path, capsys):
    common = ["prune", worded, "--heads", "0.5", "--neurons", "0.4", "--criterion", "magnitude"]
    common += ["--calibration", letters["calibration"], "--calibration-tokens", "512"]
    assert main([*common, "-o", str(tmp_path / "a"), "--max-ram", "8000"]) == 0
    assert "predicted" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "a").spec.n_head_total == 9
    assert main([*common, "-o", str(tmp_path / "b"), "--max-ram", "10"]) == 2
    assert "10 MB are not enough" in capsys.readouterr().err and not (tmp_path / "b").exists()
