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
    (expected,) = pruner.apply([pruner.order(0.5, 0.4).plan(0.5, 0.4)])
    stored, room = open_checkpoint(tmp_path / "dense", torch.float32), Room(tmp_path)
    plan = order_by_layers(stored, settings, WINDOWS.tokens, 0.5, 0.4, room).plan(0.5, 0.4)
    (tmp_path / "made").mkdir()
    write_by_layers(stored, plan, WINDOWS.tokens, tmp_path / "made", tokenizer=None, record=Record(), room=room)
    made = load_checkpoint(tmp_path / "made")
    assert made.spec == expected.spec
    with torch.no_grad():
        logits, wanted = made(WINDOWS.tokens), expected(WINDOWS.tokens)
    assert (logits - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "made"]  # nothing that was spilled is left


def test_a_criterion_with_gradients_is_refused_by_name(tmp_path):
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "dense", None, Record())
    stored = open_checkpoint(tmp_path / "dense", torch.float32)
    with pytest.raises(InputError, match=r"criterion stepwise needs .*; layer by layer there are reconstruction, magni"):
        order_by_layers(stored, PruningSettings(), WINDOWS.tokens, 0.5, 0.0)
