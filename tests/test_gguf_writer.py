"""GGUF files that are written are read as the same model, by this reader and by Hugging Face's."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from conftest import CONFIGS, LLAMA, spec_of
from helpers import filled_decoder, largest_difference, some_tokens, with_layers
from transformers import AutoConfig, AutoModelForCausalLM

from sentinel.errors import InputError
from sentinel.formats.checkpoint import build
from sentinel.formats.gguf.reader import GGUFFile
from sentinel.formats.gguf.writer import write_gguf
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.families.weights import read_weights

F32, Q8 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
LLAMAS = [name for name in CONFIGS if name.startswith("llama")]


def read(path: Path) -> Decoder:
    file = GGUFFile(path)
    spec = file.spec()
    return build(spec, read_weights(file.family.rules(spec), spec, file.weights()), path)


@pytest.mark.parametrize("name", [*LLAMAS, "gpt2", "gpt2-inner"])
def test_a_written_model_is_read_as_it_was(name, tmp_path):
    model = filled_decoder(spec_of(name))
    streamed = write_gguf(model, tmp_path / "m.gguf", F32)
    assert streamed == pytest.approx(model.spec.weight_bytes_per_token(), rel=0.02)
    again = read(tmp_path / "m.gguf")
    tokens = some_tokens(model.spec)
    with torch.no_grad():
        assert largest_difference(again(tokens), model(tokens)) < 1e-5
    ours, theirs = again.spec, model.spec
    assert (ours.layers, ours.tied_head, ours.max_seq_len) == (theirs.layers, theirs.tied_head, theirs.max_seq_len)
    assert (ours.layers[0].attention.rope, ours.norm.eps) == (
        theirs.layers[0].attention.rope,
        pytest.approx(theirs.norm.eps),
    )


@pytest.mark.parametrize("name", ["gpt2", "gpt2-inner", "llama-grouped", "llama-rope-llama3"])
def test_hugging_face_reads_a_written_model_as_it_was(name, tmp_path):
    model = filled_decoder(spec_of(name))
    streamed = write_gguf(model, tmp_path / "m.gguf", F32)
    assert streamed == pytest.approx(model.spec.weight_bytes_per_token(), rel=0.02)
    config = AutoConfig.for_model(**CONFIGS[name])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", config=config).eval()
    tokens = some_tokens(model.spec)
    with torch.no_grad():
        assert largest_difference(theirs(tokens).logits, model(tokens)) < 1e-5


def test_rounded_matrices_are_within_half_a_step(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    model = filled_decoder(family_of("llama").spec_from_config({**LLAMA, **sizes}))
    streamed = write_gguf(model, tmp_path / "m.gguf", Q8)
    assert streamed == pytest.approx(model.spec.weight_bytes_per_token(34 / 32), rel=0.05)  # 32 weights and their scale
    again, exact = read(tmp_path / "m.gguf").state_dict(), model.state_dict()
    for name in ("embed.weight", "layers.1.attn.qkv_proj.weight", "layers.2.mlp.down_proj.weight"):
        error = (again[name] - exact[name]).abs().unflatten(-1, (-1, 32)).amax(-1)
        step = exact[name].abs().unflatten(-1, (-1, 32)).amax(-1) / 127
        assert (error <= (0.5 + 127 * 2**-11) * step).all() and error.max() > 0  # a scale has 11 bits
    assert torch.equal(again["layers.0.attn_norm.weight"], exact["layers.0.attn_norm.weight"])


@pytest.mark.parametrize("change", [{"activation": "relu"}, {"activation": "silu"}])
def test_what_llama_cpp_does_not_run_is_refused(change, tmp_path):
    model = filled_decoder(with_layers(spec_of("gpt2"), **change))
    with pytest.raises(InputError, match=r"llama.cpp.s architecture gpt2"):
        write_gguf(model, tmp_path / "m.gguf", F32)
    assert not (tmp_path / "m.gguf").exists()
