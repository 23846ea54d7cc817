"""`save_pretrained` writes as Hugging Face's does: beside other files, whole file by file, and loads again as saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, some_tokens
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint
from sentinel.formats.hugging_face.model import SentinelForCausalLM
from sentinel.formats.sources import load
from sentinel.models.record import Record


def wrapped(seed: int = 0) -> SentinelForCausalLM:
    return SentinelForCausalLM.from_decoder(filled_decoder(unequal_spec(), seed), Record())


def loads_as(folder, model) -> None:
    """Hugging Face and sentinel load what ``model`` computes."""
    tokens = some_tokens(model.decoder.spec)
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(tokens).logits, expected)
        assert torch.equal(load_checkpoint(folder)(tokens), expected)


def test_all_other_files_stay(worded, tmp_path):
    AutoTokenizer.from_pretrained(worded).save_pretrained(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    others = ("README.md", "level-7.safetensors", "notes.txt", "checkpoint-5/optimizer.pt", "model.fp16.safetensors")
    for name in others:
        (tmp_path / name).write_text("mine")
    kept = {file for file in tmp_path.rglob("*") if file.is_file()}
    before = {file: file.read_bytes() for file in kept}
    for seed in (0, 1):
        model = wrapped(seed)
        model.save_pretrained(tmp_path)
        loads_as(tmp_path, model)
    assert {file: file.read_bytes() for file in kept} == before
    new = {file.name for file in tmp_path.iterdir()} - {file.name for file in kept} - {"checkpoint-5"}
    assert new - {"sentinel-files.json"} == {"config.json", "generation_config.json", "model.safetensors"}


@pytest.mark.parametrize("sizes", [("10KB", "50GB"), ("50GB", "10KB"), ("10KB", "30KB")])
def test_weights_of_an_earlier_save_are_not_read(sizes, tmp_path):
    for seed, size in enumerate(sizes):
        model = wrapped(seed)
        model.save_pretrained(tmp_path, max_shard_size=size)
        loads_as(tmp_path, model)


def test_options_are_hugging_faces(tmp_path):
    first, second = wrapped(0), wrapped(1)
    first.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path, variant="fp16")
    loads_as(tmp_path, first)
    tokens = some_tokens(first.decoder.spec)
    with torch.no_grad():
        again = SentinelForCausalLM.from_pretrained(tmp_path, variant="fp16")
        assert torch.equal(again(tokens).logits, second(tokens).logits)
    first.save_pretrained(tmp_path, state_dict=second.state_dict(), safe_serialization=True)
    loads_as(tmp_path, second)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_shard_sise": "1GB"}, TypeError, "max_shard_sise"),
        ({"safe_serialization": False}, InputError, "safe_serialization"),
        ({"distributed_checkpoint": True}, InputError, "distributed_checkpoint"),
        ({"repo_id": "me/model"}, InputError, "repo_id is of use with push_to_hub=True only"),
    ],
)
def test_options_without_effect_are_refused(options, error, said, tmp_path):
    with pytest.raises(error, match=said):
        wrapped().save_pretrained(tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_other_processes_write_nothing(tmp_path):
    wrapped().save_pretrained(tmp_path / "a", is_main_process=False)
    assert not (tmp_path / "a").exists()
    wrapped().save_pretrained(tmp_path / "b")
    before = {file: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    wrapped(1).save_pretrained(tmp_path / "b", is_main_process=False)
    assert {file: file.read_bytes() for file in (tmp_path / "b").iterdir()} == before


def test_a_failed_save_leaves_the_earlier_one(tmp_path, monkeypatch):
    model = wrapped()
    model.save_pretrained(tmp_path / "a")
    names = sorted(file.name for file in (tmp_path / "a").iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(InputError, match="No space left"):
        wrapped(1).save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="No space left"):
        wrapped(1).save_pretrained(tmp_path / "new")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    loads_as(tmp_path / "a", model)
    with pytest.raises(InputError, match="is a file"):
        model.save_pretrained(tmp_path / "a" / "config.json")


@pytest.mark.parametrize("options", [{}, {"repo_id": "me/named"}])
def test_the_repository_has_the_folders_name(options, tmp_path, monkeypatch):
    made, sent = [], []

    class Made:
        repo_id = "me/made"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: made.append(name) or Made)
    monkeypatch.setattr(SentinelForCausalLM, "_upload_modified_files", lambda self, *a, **k: sent.append((a, k)))
    place = tmp_path / "my-model"
    place.mkdir()
    (place / "README.md").write_text("mine")
    wrapped().save_pretrained(f"{place}/", push_to_hub=True, commit_message="say", token="secret", **options)
    assert made == [options.get("repo_id", "my-model")]
    (((folder, repository, before), given),) = sent
    assert (str(folder), repository, set(before)) == (str(place), "me/made", {"README.md"})
    assert given == {"commit_message": "say", "token": "secret"}
    assert (place / "README.md").read_text() == "mine"


def test_trainer_saves_and_goes_on(tmp_path):
    rows = some_tokens(spec_of("llama-grouped"), batch=8, length=12)
    data = [{"input_ids": row, "labels": row} for row in rows]
    model = SentinelForCausalLM.from_decoder(filled_decoder(spec_of("llama-grouped")), Record())
    settings = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=4,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=data)  # pyright: ignore[reportArgumentType]
    trainer.train()
    trainer.save_model()
    trainer.save_model()
    assert {"checkpoint-1", "checkpoint-2", "config.json"} <= {path.name for path in tmp_path.iterdir()}
    loads_as(tmp_path, model)
    loads_as(tmp_path / "checkpoint-2", model)


def test_an_elastic_model_is_saved_with_its_levels(elastic, tmp_path):
    tokens = some_tokens(load(elastic).spec)
    stored = load(elastic).decoder
    with torch.no_grad():
        dense = stored(tokens)
        stored.set_width(0.5, 0.5)
        pruned = stored(tokens)
        model = AutoModelForCausalLM.from_pretrained(elastic)
        model.set_width(0.5, 0.5)
        for _ in range(2):
            model.save_pretrained(tmp_path / "again")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
        assert torch.equal(again(tokens).logits, pruned)
        again.set_width(0.0)
        assert torch.equal(again(tokens).logits, dense)
        loaded = load(str(tmp_path / "again")).decoder
        assert torch.equal(loaded(tokens), dense)
        loaded.set_width(0.5, 0.5)
        assert torch.equal(loaded(tokens), pruned)
    with pytest.raises(InputError, match="state_dict is that of a stored width"):
        model.save_pretrained(tmp_path / "again", state_dict=model.state_dict())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "width-0.safetensors").write_text("mine")
    with pytest.raises(InputError, match="in the way"):
        model.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "width-0.safetensors").read_text() == "mine"
    plain = wrapped()
    plain.save_pretrained(tmp_path / "again")
    loads_as(tmp_path / "again", plain)


def test_what_the_config_says_of_its_making_is_kept(worded, tmp_path):
    config = json.loads((Path(worded) / "config.json").read_text())
    wrapped().save_pretrained(tmp_path / "a")
    said = json.loads((tmp_path / "a" / "config.json").read_text())
    said["record"] = Record(weights="random").to_dict()
    for field in ("pruning", "recovery"):  # of an earlier version
        said[field] = {"steps": [{"name": "prune", "heads": 0.5}]}
    (tmp_path / "a" / "config.json").write_text(json.dumps(said))
    SentinelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    again = json.loads((tmp_path / "b" / "config.json").read_text())
    assert {field: again[field] for field in ("record", "pruning", "recovery")} == {
        field: said[field] for field in ("record", "pruning", "recovery")
    }
    model = SentinelForCausalLM.from_pretrained(worded)
    model.save_pretrained(tmp_path / "c")
    assert model.generation_config.eos_token_id == config["eos_token_id"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "c").generation_config.eos_token_id == config["eos_token_id"]
