"""Recovery by several processes: it learns what one process learns, whole or in shards, and goes on in another number."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, some_tokens
from safetensors.torch import load_file, save_file

from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.recovery.recover import recover
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder

SETTINGS = RecoverySettings(steps=4, batch=4, learning_rate=1e-3, evaluations=2, bf16=False, checkpoint_minutes=0.0)
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
           "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}  # fmt: skip
WAYS = {"ddp": {}, "fsdp2": SHARDED, "fsdp2-from-one": {**SHARDED, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}}


def subjects() -> tuple[Decoder, Decoder, torch.Tensor, torch.Tensor]:
    """Student and teacher, a layer of which has no heads and another no neurons; windows to learn from and to judge by."""
    spec = unequal_spec()
    windows = (some_tokens(spec, batch=count, length=17, seed=count) for count in (24, 6))
    return filled_decoder(spec, 1), filled_decoder(spec), *windows


def shard_on_the_cpu() -> None:
    """Let Accelerate shard over processes without accelerators, which it leaves to DDP."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    made = AcceleratorState.__init__

    def init(self, *arguments, fsdp_plugin=None, **options):
        made(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


def main(folder: Path, changes: str, stop: int) -> None:
    """One of the processes: learn, and let the first one say what came of it."""
    torch.set_num_threads(1)
    if "ACCELERATE_USE_FSDP" in os.environ:
        shard_on_the_cpu()
    student, teacher, train, held_out = subjects()
    settings = dataclasses.replace(SETTINGS, **json.loads(changes))

    def after(step):
        if step.step == stop:
            raise KeyboardInterrupt

    try:
        found = recover(student, teacher, train, held_out, settings, folder=folder / "run", after_step=after)
    except KeyboardInterrupt:
        return
    kinds = {type(parameter.data).__name__ for parameter in student.parameters()}
    if os.environ["RANK"] == "0":
        save_file({name: tensor.contiguous() for name, tensor in student.state_dict().items()}, folder / "student")
        said = {"losses": found.losses, "kl": [h.mean_kl for h in found.held_out], "kinds": sorted(kinds)}
        (folder / "said.json").write_text(json.dumps(said))


def launch(folder: Path, way: str, stop: int = 0, **changes: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    tests = str(Path(__file__).parent)
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **WAYS[way]}
    environment["PYTHONPATH"] = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(folder), json.dumps(changes), str(stop)],
        capture_output=True, text=True, check=False, timeout=500, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone():
    """What one process learns of as many windows per update: losses, divergences, and the model."""
    student, teacher, train, held_out = subjects()
    found = recover(student, teacher, train, held_out, SETTINGS)
    assert found.best.step > 0
    return found.losses, [h.mean_kl for h in found.held_out], student.state_dict()


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_does(way, alone, tmp_path):
    losses, divergences, state = alone
    launch(tmp_path, way, batch=2, gradient_checkpointing=way == "fsdp2")
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["kinds"] == ["Tensor"]  # no shards are left
    assert said["losses"] == pytest.approx(losses, abs=1e-4)
    assert said["kl"] == pytest.approx(divergences, abs=1e-4)
    learned = load_file(tmp_path / "student")
    assert learned.keys() == state.keys()
    for name, tensor in learned.items():
        torch.testing.assert_close(tensor, state[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_one_process_goes_on_where_two_were_stopped(way, alone, tmp_path):
    launch(tmp_path, way, stop=3, batch=2)
    assert not (tmp_path / "said.json").exists()
    student, teacher, train, held_out = subjects()
    with pytest.raises(InputError, match="batch x accumulate x processes is one of them"):
        recover(student, teacher, train, held_out, dataclasses.replace(SETTINGS, batch=2), folder=tmp_path / "run")
    went_on = dataclasses.replace(SETTINGS, batch=2, accumulate=2)
    found = recover(student, teacher, train, held_out, went_on, folder=tmp_path / "run")
    assert len(found.losses) == 4
    assert found.losses == pytest.approx(alone[0], abs=1e-4)


def test_two_processes_go_on_where_one_was_stopped(alone, tmp_path):
    student, teacher, train, held_out = subjects()

    def stop(step):
        if step.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(student, teacher, train, held_out, SETTINGS, folder=tmp_path / "run", after_step=stop)
    launch(tmp_path, "ddp", batch=2)
    assert json.loads((tmp_path / "said.json").read_text())["losses"] == pytest.approx(alone[0], abs=1e-4)


def test_layers_that_are_computed_again_learn_the_same(alone):
    student, teacher, train, held_out = subjects()
    calls = []
    student.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = recover(student, teacher, train, held_out, dataclasses.replace(SETTINGS, gradient_checkpointing=True))
    assert found.losses == alone[0]
    assert sum(calls) == 2 * 4  # each of four updates computes the layer twice
    assert all("forward" not in vars(block) for block in student.blocks)


def test_shards_of_an_elastic_model_are_refused(monkeypatch):
    dense = filled_decoder(spec_of("llama-multi-head-tied"))
    pruner = Pruner(dense, PruningSettings("magnitude", compensate=False), None)
    order = pruner.order(0.5, 0.0)
    plans = [order.plan(0.5)]
    elastic = make_elastic(dense, order, plans, pruner.apply(plans))
    monkeypatch.setattr("sentinel.adapt.recovery.recover.is_sharded", lambda _: True)
    with pytest.raises(InputError, match="the widths of an elastic model take turns"):
        recover(elastic, dense, some_tokens(dense.spec, 8), some_tokens(dense.spec), SETTINGS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
