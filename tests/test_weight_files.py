"""Weights as they are found: pickled or in shards, in halves, and without the prefix of the whole class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS as FIRST_CONFIGS
from family_configs import CONFIGS, hugging_face_model
from helpers import largest_difference, some_tokens
from safetensors.torch import save_file

from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint
from sentinel.formats.folder import weight_files
from sentinel.models.families import FAMILIES

State = dict[str, torch.Tensor]
ONE_EACH = {family: name for name, (family, _) in reversed(CONFIGS.items())} | {
    "llama": "llama-grouped",
    "gpt2": "gpt2",
}


def model_of(name: str) -> Any:
    if name in CONFIGS:
        return hugging_face_model(*CONFIGS[name])
    fields = dict(FIRST_CONFIGS[name])
    return hugging_face_model(fields.pop("model_type"), fields)


def folder_of(model: Any, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    return folder


def assert_loads(folder: Path, model: Any) -> None:
    decoder = load_checkpoint(folder)
    tokens = some_tokens(decoder.spec)
    with torch.no_grad():
        assert largest_difference(decoder(tokens), model(tokens).logits) < 1e-5


def in_shards(state: State, folder: Path, suffix: str, write: Any) -> None:
    """Two files, and the index of them."""
    names = sorted(state)
    single = {"bin": "pytorch_model", "safetensors": "model"}[suffix]
    places = {name: f"{single}-0000{1 + (i >= 3)}-of-00002.{suffix}" for i, name in enumerate(names)}
    for file in set(places.values()):
        write({name: state[name] for name in names if places[name] == file}, folder / file)
    (folder / f"{single}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_every_family_is_here():
    assert set(ONE_EACH) == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(ONE_EACH))
def test_pickled_weights_without_a_prefix(family, tmp_path):
    """As ``AutoModel`` saved them; the LM head, if it is no embedding, beside them."""
    model = model_of(ONE_EACH[family])
    bare = {name: tensor.clone() for name, tensor in model.base_model.state_dict().items()}
    if not model.config.tie_word_embeddings:
        bare |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("lm_head.")}
    torch.save(bare, folder_of(model, tmp_path) / "pytorch_model.bin")
    assert_loads(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("sharded", [False, True])
def test_halves_in_one_file_or_two(kind, sharded, dtype, tmp_path):
    model = model_of("qwen2").to(dtype)
    state = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    folder_of(model, tmp_path)
    write = torch.save if kind == "bin" else save_file
    if sharded:
        in_shards(state, tmp_path, kind, write)
    else:
        write(state, tmp_path / {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[kind])
    assert_loads(tmp_path, model.float())
    assert load_checkpoint(tmp_path, None).dtype == dtype
    assert len(weight_files(tmp_path)) == 1 + sharded


def test_safetensors_win(tmp_path):
    model, other = model_of("qwen2"), model_of("qwen2")
    with torch.no_grad():
        other.model.embed_tokens.weight.add_(1)
    state = {name: t.clone() for name, t in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder_of(model, tmp_path) / "model.safetensors")
    torch.save(other.state_dict(), tmp_path / "pytorch_model.bin")
    assert_loads(tmp_path, model)
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


class Runs:
    """What unpickles to a call."""

    def __reduce__(self) -> Any:
        return (print, ("this must not be run",))


def test_what_is_not_just_weights_is_refused(tmp_path, capsys):
    model = model_of("qwen2")
    file = folder_of(model, tmp_path) / "pytorch_model.bin"
    for content, said in (
        ({"a": Runs()}, "holds more than weights"),
        ([torch.ones(2)], "no table of tensors"),
        ({"a": 1}, "no table of tensors"),
        ({}, "no table of tensors"),
    ):
        torch.save(content, file)
        with pytest.raises(InputError, match=said):
            load_checkpoint(tmp_path)
    assert "must not" not in capsys.readouterr().out
    torch.save(model.state_dict(), file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"has no weights: none of model.safetensors and pytorch_model.bin"):
        load_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    model = model_of("qwen2")
    state = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    in_shards(state, folder_of(model, tmp_path), "bin", torch.save)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match=r"pytorch_model-00002-of-00002.bin is missing"):
        load_checkpoint(tmp_path)
