"""GGUF files that are written are read as the same model, by this reader and by Hugging Face's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import gguf_models
import pytest
import torch
from conftest import CONFIGS, LLAMA, spec_of
from family_configs import spec_named
from gguf_models import FULL, UNEQUAL, layer, model, of_family
from helpers import (
    byte_level,
    filled_decoder,
    largest_difference,
    letter_tokenizer,
    metaspace,
    some_tokens,
    with_layers,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sentinel.errors import InputError
from sentinel.formats.gguf import unequal
from sentinel.formats.gguf.export import write_gguf
from sentinel.formats.gguf.reader import GGUFFile
from sentinel.formats.sources import load
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.families.gguf import GGUFFields
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import console


def read(path: Path) -> Decoder:
    return GGUFFile(path).stored().decoder()


def written(decoder: Decoder, path: Path) -> Decoder:
    """What is read from a file of ``decoder``: a model that computes the same."""
    write_gguf(decoder, None, path, "fp32")
    again, tokens = read(path), some_tokens(decoder.spec)
    with torch.no_grad():
        assert largest_difference(again(tokens), decoder(tokens)) < 1e-5
    return again


@pytest.mark.parametrize("name", gguf_models.FAMILIES)
def test_a_model_of_equal_layers_goes_into_its_familys_architecture(name, tmp_path):
    decoder = filled_decoder(of_family(name))
    again = written(decoder, tmp_path / "m.gguf")
    file, family = GGUFFile(tmp_path / "m.gguf"), family_of(decoder.spec.family)
    assert family.gguf is not None and file.architecture == family.gguf.architecture
    sizes = [(y.n_head, y.n_kv_head, y.head_dim, y.intermediate_size) for y in again.spec.layers]
    assert sizes == [(y.n_head, y.n_kv_head, y.head_dim, y.intermediate_size) for y in decoder.spec.layers]
    assert again.spec.max_seq_len == decoder.spec.max_seq_len
    assert again.spec.norm.eps == pytest.approx(decoder.spec.norm.eps)


def test_every_family_of_llama_cpp_is_written():
    from sentinel.models.families import FAMILIES

    there = {family.model_type for family in FAMILIES.values() if family.gguf is not None}
    assert {of_family(name).family for name in gguf_models.FAMILIES} == there


@pytest.mark.parametrize("name", UNEQUAL)
def test_layers_that_differ(name, tmp_path):
    decoder = filled_decoder(UNEQUAL[name])
    again = written(decoder, tmp_path / "m.gguf")
    assert GGUFFile(tmp_path / "m.gguf").architecture == "deci"
    for index, (ours, theirs) in enumerate(zip(decoder.spec.layers, again.spec.layers, strict=True)):
        assert theirs.n_head == (ours.n_head or (index == 0))  # the first layer keeps a head
        assert theirs.intermediate_size == max(ours.intermediate_size, 1)


def read_fields(*without: str, tensors: tuple[str, ...] = (), **changed: object) -> ModelSpec:
    """What is read of the fields of a file of layers that differ, some of which are left out or changed ("__" for ".")."""
    decoder = filled_decoder(UNEQUAL["heads"])
    made = unequal.held(decoder.spec, decoder.state_dict(), 1)
    fields = {**made.fields, **{name.replace("__", "."): value for name, value in changed.items()}}
    fields = {name: value for name, value in fields.items() if name not in without}
    return unequal.read_spec(
        GGUFFields("f", "deci", fields, [*made.names(), *tensors]), lambda name: made.extra[name], 320
    )


def test_files_of_other_writers_of_layers_that_differ():
    assert read_fields("attention.key_length", "attention.value_length", "vocab_size") == read_fields()
    assert read_fields(attention__head_count=6).layers[1].n_head == 6
    assert read_fields(tensors=("output.weight",)).tied_head is False
    no_heads = {"attention__head_count": [0, 2, 6], "attention__head_count_kv": [0, 1, 3]}
    for left_out, changed, said in (
        ((), {"attention__head_count_kv": [2, 0, 3]}, "layer 1 has a linear map"),
        ((), {"feed_forward_length": [96, 96]}, "2 entries for 3 layers"),
        ((), {"attention__head_count": [4, -2, 6]}, "at least 0"),
        ((), {"attention__value_length": 8}, "value_length"),
        ((), {"expert_count": 4}, "expert_count"),
        (("attention.key_length",), no_heads, "key_length"),
    ):
        with pytest.raises(InputError, match=said):
            read_fields(*left_out, **changed)


def test_tensors_that_are_missing_or_too_many_are_named(tmp_path):
    spec = read_fields()
    decoder = filled_decoder(spec)
    made = unequal.held(spec, decoder.state_dict(), 1)
    tensors = dict(made.tensors(made.state))
    assert set(unequal.read_state(spec, tensors)) == set(decoder.state_dict())
    for name in ("blk.1.attn_k.weight", "blk.2.ffn_norm.weight", "output_norm.weight"):
        with pytest.raises(InputError, match=f"lack the tensor '{name}'"):
            unequal.read_state(spec, {other: tensor for other, tensor in tensors.items() if other != name})
    with pytest.raises(InputError, match=r"'blk\.0\.attn_q_norm\.weight' is not supported"):
        unequal.read_state(spec, {**tensors, "blk.0.attn_q_norm.weight": torch.ones(16)})
    with pytest.raises(InputError, match="does not fit the heads of layer 2"):
        unequal.read_state(spec, {**tensors, "blk.2.attn_q.weight": torch.ones(5, 64)})


def test_the_whole_of_an_elastic_model_is_written(elastic, tmp_path):
    decoder = load(elastic).decoder
    whole, tokens = decoder(some_tokens(decoder.spec)), some_tokens(decoder.spec)
    decoder.set_width(0.5, 0.5)
    write_gguf(decoder, None, tmp_path / "m.gguf", "fp32")
    with torch.no_grad():
        assert largest_difference(read(tmp_path / "m.gguf")(tokens), whole) < 1e-5


def test_what_llama_cpp_has_no_unequal_layers_for_is_filled_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "quiet", False)
    for name, sizes in (
        ("gpt2", ((3, 3, 12, 100), (0, 0, 12, 60), (4, 4, 12, 0))),
        ("gpt2", ((2, 2, 12, 100),) * 3),  # as many heads as are as wide as the model
        ("qwen3", ((4, 2, 16, 80), (2, 1, 16, 33), (0, 0, 16, 0))),
        ("gemma", ((6, 2, 16, 80), (3, 1, 16, 80))),
    ):
        spec = spec_of(name) if name in CONFIGS else spec_named(name)
        decoder = filled_decoder(with_layers(spec, *sizes))
        again = written(decoder, tmp_path / "m.gguf")
        assert GGUFFile(tmp_path / "m.gguf").architecture == name
        assert len(set(again.spec.layers)) == 1
        assert "pruning saves nothing there" in capsys.readouterr().err


def test_biases_that_a_family_lacks_make_it_a_model_of_layers_that_may_differ(tmp_path):
    decoder = filled_decoder(with_layers(spec_named("qwen2"), down_bias=True, out_bias=True))
    written(decoder, tmp_path / "m.gguf")
    assert GGUFFile(tmp_path / "m.gguf").architecture == "deci"


@pytest.mark.parametrize("name", ["gpt2", "gpt2-inner", "llama-grouped", "llama-rope-llama3"])
def test_hugging_face_reads_a_written_model_as_it_was(name, tmp_path):
    decoder = filled_decoder(spec_of(name))
    streamed = write_gguf(decoder, None, tmp_path / "m.gguf", "fp32")
    assert streamed == pytest.approx(decoder.spec.weight_bytes_per_token(), rel=0.02)
    config = AutoConfig.for_model(**CONFIGS[name])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", config=config).eval()
    tokens = some_tokens(decoder.spec)
    with torch.no_grad():
        assert largest_difference(theirs(tokens).logits, decoder(tokens)) < 1e-5


def test_rounded_matrices_are_within_half_a_step(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    decoder = filled_decoder(family_of("llama").spec_from_config({**LLAMA, **sizes}))
    streamed = write_gguf(decoder, None, tmp_path / "m.gguf", "q8_0")
    assert streamed == pytest.approx(decoder.spec.weight_bytes_per_token(34 / 32), rel=0.05)  # 32 weights and a scale
    again, exact = read(tmp_path / "m.gguf").state_dict(), decoder.state_dict()
    for name in ("embed.weight", "layers.1.attn.qkv_proj.weight", "layers.2.mlp.down_proj.weight"):
        error = (again[name] - exact[name]).abs().unflatten(-1, (-1, 32)).amax(-1)
        step = exact[name].abs().unflatten(-1, (-1, 32)).amax(-1) / 127
        assert (error <= (0.5 + 127 * 2**-11) * step).all() and error.max() > 0  # a scale has 11 bits
    assert torch.equal(again["layers.0.attn_norm.weight"], exact["layers.0.attn_norm.weight"])


@pytest.mark.parametrize(
    ("precision", "bits", "of_ends"), [("fp16", 16, 16), ("q8_0", 8.5, 8.5), ("q4_1", 5, 8.5), ("q4_0", 4.5, 8.5)]
)
def test_the_size_of_a_file_of_layers_that_differ(precision, bits, of_ends, tmp_path):
    """Neurons are filled up to whole blocks, so that no matrix stays in fp32."""
    decoder = filled_decoder(model(FULL, layer(2, 1, 33), layer(4, 4, 65)))
    streamed = write_gguf(decoder, None, tmp_path / "m.gguf", precision)
    again, exact = read(tmp_path / "m.gguf"), decoder.state_dict()
    wanted = [96, 33, 65] if precision == "fp16" else [96, 64, 96]
    assert [y.intermediate_size for y in again.spec.layers] == wanted
    matrices = sum(tensor.numel() for tensor in again.state_dict().values() if tensor.dim() > 1)
    vectors = sum(tensor.numel() for name, tensor in again.state_dict().items() if "norm" in name)
    (ends,) = (tensor.numel() for name, tensor in again.state_dict().items() if name == "embed.weight")
    assert streamed == (matrices - ends) * bits / 8 + ends * of_ends / 8 + vectors * 4
    ours, rest = again.state_dict()["layers.1.mlp.down_proj.weight"].split((33, wanted[1] - 33), dim=1)
    gates = (
        again.state_dict()["layers.1.mlp.gate_proj.weight"]
        if wanted[1] > 33
        else exact["layers.1.mlp.gate_proj.weight"]
    )
    assert not gates[33:].any()  # the neurons are 0, and in Q4_1 what reads them may not be
    assert precision == "q4_1" or not rest.any()
    error, largest = (ours - exact["layers.1.mlp.down_proj.weight"]).abs().max(), ours.abs().max()
    assert 0 < error < largest / {"fp16": 2**10, "q8_0": 200, "q4_1": 14, "q4_0": 7}[precision]
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    own = {"fp16": "F16"}.get(precision, precision.upper())
    assert kinds == {"F32", own, *(["Q8_0"] if of_ends != bits else [])}


# --- what is refused --------------------------------------------------------------------------------------------------

GPT2 = spec_of("gpt2")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (with_layers(GPT2, activation="relu"), "architecture gpt2 .* does not support activation relu"),
        (with_layers(GPT2, activation="silu"), "activation silu"),
        (spec_named("opt"), "no architecture for models of family opt"),
        (spec_named("mistral-window"), "architecture llama .* attention windows"),
        (spec_named("qwen2-window"), "architecture qwen2 .* attention windows in layer 2"),
        (spec_named("olmo2-bias"), "architecture olmo2 .* a bias of the attention output in layer 0"),
        (spec_named("gemma2-no-caps"), "soft_cap of None, only of"),
        (spec_named("gpt_bigcode-multi-head"), "n_kv_head in layer 0 of 4, only of 1"),
        (spec_named("llama-yarn-mscale"), "beta_fast of rotary positions in layer 0 of 16.0, only of 32.0"),
        (dataclasses.replace(spec_named("gemma"), tied_head=False), "an LM head of its own"),
        (with_layers(spec_named("olmo2"), (6, 2, 8, 80), (3, 1, 8, 80)), "norms over all heads"),
        (model(FULL, dataclasses.replace(FULL, attention=dataclasses.replace(FULL.attention, rope=None))), "rotary"),
        (model(FULL, with_layers(model(FULL), (2, 2, 8, 96)).layers[0]), r"head sizes of \[8, 16\]"),
        (model(FULL, layer(2, 1, 96, qk_norm="head")), "norms of queries and keys"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_llama_cpp_does_not_run_is_refused_by_name(spec, said, tmp_path):
    with pytest.raises(InputError, match=said):
        write_gguf(filled_decoder(spec), None, tmp_path / "m.gguf", "fp32")
    assert not list(tmp_path.iterdir())


def test_other_precisions_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"'q5_1' \(fp32, fp16, bf16, q8_0, q4_1, q4_0 are\)"):
        write_gguf(filled_decoder(GPT2), None, tmp_path / "m.gguf", "q5_1")


# --- tokenizers -------------------------------------------------------------------------------------------------------

SETTINGS = {
    "byte-level": (byte_level(), {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}),
    "sentencepiece": (metaspace(), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
}
TEXTS = ("The quick brown fox, don't 12345", "hello\n\n user  x", "é 東京", "")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tokenizer_is_in_the_file(name, tmp_path):
    fast, settings = SETTINGS[name]
    template = "{{ messages[0]['content'] }}{{ eos_token }}"
    end = fast.token_to_id(settings["eos_token"])
    tokenizer = TextTokenizer(fast, (end, 40, 41), settings={**settings, "chat_template": template})
    decoder = filled_decoder(dataclasses.replace(UNEQUAL["heads"], vocab_size=320))  # more than the tokenizer has
    write_gguf(decoder, tokenizer, tmp_path / "m.gguf", "fp32")
    again = load(str(tmp_path / "m.gguf")).tokenizer
    assert again is not None
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids) == tokenizer.decode(ids)
    assert (again.eos_ids, again.chat_template) == ((end, 40, 41), template)
    assert again.apply_chat([{"role": "user", "content": "The"}]) == tokenizer.apply_chat(
        [{"role": "user", "content": "The"}]
    )


def test_hugging_face_reads_the_tokenizer(tmp_path):
    fast, settings = SETTINGS["byte-level"]
    tokenizer = TextTokenizer(fast, (0,), settings=settings)
    decoder = filled_decoder(dataclasses.replace(spec_of("llama-grouped"), vocab_size=fast.get_vocab_size()))
    write_gguf(decoder, tokenizer, tmp_path / "m.gguf", "fp32")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        assert theirs(text).input_ids == tokenizer.encode(text)


def test_without_a_tokenizer_there_is_none(tmp_path):
    write_gguf(filled_decoder(spec_of("llama-grouped")), None, tmp_path / "m.gguf", "fp32")
    assert load(str(tmp_path / "m.gguf")).tokenizer is None


def test_tokenizers_that_a_file_can_not_hold_are_refused(tmp_path):
    decoder = filled_decoder(spec_of("llama-grouped"))
    odd = byte_level(use_regex=False)
    many = TextTokenizer(byte_level(), (0, 1, 2, 3))
    for tokenizer, said in (
        (letter_tokenizer(), "WordLevel"),
        (TextTokenizer(odd, ()), "no name for how it cuts"),
        (many, "4 tokens end a text"),
    ):
        with pytest.raises(InputError, match=said):
            write_gguf(decoder, tokenizer, tmp_path / "m.gguf", "fp32")
