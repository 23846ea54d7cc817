"""GGUF files of llama architecture: weights, rotary settings and tokenizers are those of the model that was written."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import LLAMA, LLAMA3_ROPE
from helpers import largest_difference, some_tokens
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sentinel.errors import InputError
from sentinel.formats.sources import load
from sentinel.models.rotary import frequencies
from sentinel.models.spec import RopeSpec

TEXTS = (
    "",
    "hello",
    " The  quick\n\nbrown fox 12345",
    "don't <think>x</think> <|end|>",
    "🙂 你好",
    "I'LL HTTPServer é",
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL = ["<|end|>", "<think>", *ALPHABET, "he", "ll", "hell", "hello", "Ġq", "12", "123", "'t", "'L", "'LL"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ q", "1 2", "12 3", "' t", "' L", "'L L"]
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{i:02X}>" for i in range(256)),
    "<think>",
    "▁",
    "▁h",
    "he",
    "▁he",
    "ll",
    *"helotquick",
]
NORMAL, UNKNOWN, CONTROL, USER, BYTE = (
    gguf.TokenType[n] for n in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "BYTE")
)


def hugging_face(**change):
    """A random Llama of Hugging Face."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**LLAMA, "vocab_size": 300, **change})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2)
    return model


NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors_of(model) -> dict[str, np.ndarray]:
    """The model's tensors under llama.cpp's names and in its order of q and k."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    config, out = model.config, {}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        module, part = name.rsplit(".", 1)
        if module in top:
            if not (module == "lm_head" and config.tie_word_embeddings):
                out[f"{top[module]}.{part}"] = tensor.numpy()
            continue
        _, _, layer, kind = module.split(".", 3)
        array = tensor.numpy()
        if NAMES[kind] in heads:
            split = array.reshape(heads[NAMES[kind]], 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(split.swapaxes(1, 2)).reshape(array.shape)
        out[f"blk.{layer}.{NAMES[kind]}.{part}"] = array
    return out


def byte_level(writer: gguf.GGUFWriter, pre: str = "gpt-2", kinds=None) -> None:
    kinds = kinds or [CONTROL, USER, *[NORMAL] * (len(BYTE_LEVEL) - 2)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(BYTE_LEVEL)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def sentencepiece(writer: gguf.GGUFWriter) -> None:
    tokens = list(dict.fromkeys(PIECES))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 260 + [-float(i) for i in range(len(tokens) - 260)])
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, USER, *[NORMAL] * (len(tokens) - 260)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def write(path: Path, model=None, tokenizer=byte_level, fields=None, tensors=None) -> Path:
    """A GGUF file of ``model``; ``fields`` and ``tensors`` add to it, or take away what is None."""
    model = model or hugging_face()
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    plain = {
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
    }
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in {**plain, **(fields or {})}.items():
        if value is not None:
            adders.get(type(value), writer.add_array)(key, value)
    tokenizer(writer)
    for name, array in {**tensors_of(model), **(tensors or {})}.items():
        if isinstance(array, tuple):
            writer.add_tensor(name, array[0], raw_dtype=array[1])
        elif array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_equal(path: Path, model) -> None:
    ours = load(str(path)).decoder
    tokens = some_tokens(ours.spec)
    with torch.no_grad():
        assert largest_difference(ours(tokens), model(tokens).logits) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 6},
        {"attention_bias": True},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 10},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
    ids=str,
)
def test_a_model_computes_what_it_did(change, tmp_path):
    model = hugging_face(**change)
    assert_equal(write(tmp_path / "m.gguf", model), model)


def test_biases_of_some_projections_alone(tmp_path):
    model = hugging_face(attention_bias=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias.zero_()
    gone = {f"blk.{i}.attn_output.bias": None for i in range(3)}
    assert_equal(write(tmp_path / "m.gguf", model, tensors=gone), model)


def test_rounded_weights_are_told(tmp_path):
    model = hugging_face(hidden_size=96)
    name, kind = "blk.0.ffn_up.weight", gguf.GGMLQuantizationType.Q8_0
    rounded = gguf.quantize(tensors_of(model)[name], kind)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.copy_(torch.from_numpy(gguf.dequantize(rounded, kind)))
    path = write(tmp_path / "m.gguf", model, tensors={name: (rounded, kind)})
    assert_equal(path, model)
    assert load(str(path)).description == "de-quantised from Q8_0"
    assert load(str(write(tmp_path / "n.gguf", model))).description == ""


def is_read(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether the gguf package de-quantises it."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return block > 1


KINDS = [kind for kind in gguf.GGMLQuantizationType if is_read(kind)]


def some_blocks(kind: gguf.GGMLQuantizationType, rows: int, columns: int) -> np.ndarray:
    """Random bytes of blocks [rows, bytes] of which every value is finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    found = random.integers(0, 256, (rows * columns // block, size), np.uint8)
    with np.errstate(all="ignore"):
        while len(bad := np.flatnonzero(~(np.abs(gguf.dequantize(found, kind)) < 1e3).all(-1))):
            found[bad] = random.integers(0, 256, (len(bad), size), np.uint8)
    return found.reshape(rows, -1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_of_rounded_weights_is_read(kind, tmp_path):
    model = hugging_face(hidden_size=256, num_attention_heads=8)
    blocks = some_blocks(kind, 80, 256)
    path = write(tmp_path / "m.gguf", model, tensors={"blk.0.ffn_up.weight": (blocks, kind)})
    loaded = load(str(path))
    read = loaded.decoder.state_dict()["layers.0.mlp.up_proj.weight"].numpy()
    assert np.array_equal(read, gguf.dequantize(blocks, kind)) and len(np.unique(read)) > 2
    assert loaded.description == f"de-quantised from {kind.name}"


def test_the_types_are_those_that_llama_cpp_writes():
    assert {"Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "TQ2_0", "MXFP4"} <= {kind.name for kind in KINDS}


LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}


@pytest.mark.parametrize(
    ("rope", "fields"),
    [
        (LINEAR, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}),
        (LINEAR, {"llama.rope.scaling.factor": 4.0}),
        (LINEAR, {"llama.rope.scale_linear": 4.0}),
        ({}, {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}),
        ({}, {"llama.rope.scaling.factor": 1.0}),
        ({}, {"llama.rope.freq_base": None}),
        ({"num_key_value_heads": 6}, {"llama.attention.head_count_kv": None}),
        ({}, {"llama.attention.head_count_kv": [2, 2, 2], "llama.feed_forward_length": [80, 80, 80]}),
        ({}, {"llama.attention.key_length": None, "llama.rope.dimension_count": None, "llama.expert_count": 0}),
    ],
    ids=str,
)
def test_fields_of_other_writers(rope, fields, tmp_path):
    model = hugging_face(**rope)
    assert_equal(write(tmp_path / "m.gguf", model, fields=fields), model)


@pytest.mark.parametrize("original", [32, 8192, 100])
def test_the_scaling_of_llama_3_is_found_in_its_frequencies(original, tmp_path):
    scaling = {**LLAMA3_ROPE, "original_max_position_embeddings": original}
    model = hugging_face(rope_parameters=scaling, head_dim=32)
    spec = RopeSpec(10000.0, "llama3", factor=8.0, original_max_seq_len=original)
    divisors = torch.from_numpy(frequencies(RopeSpec(10000.0), 32) / frequencies(spec, 32))
    path = write(tmp_path / "m.gguf", model, tensors={"rope_freqs.weight": divisors.numpy()})
    assert_equal(path, model)


@pytest.mark.parametrize("suffix", ["gguf", "GGUF"])
def test_the_suffix_may_be_in_capitals(suffix, tmp_path):
    path = write(tmp_path / f"m.{suffix}")
    assert load(str(path)).name == f"m.{suffix}"
    with pytest.raises(InputError, match="does not exist"):
        load(str(tmp_path / f"none.{suffix}"))


@pytest.mark.parametrize(
    ("fields", "tensors", "said"),
    [
        ({"llama.rope.scaling.type": "yarn"}, {}, "yarn"),
        ({"llama.attention.head_count_kv": [2, 1, 2]}, {}, "head_count_kv"),
        ({"llama.rope.dimension_count": 4}, {}, "dimension_count"),
        ({"llama.expert_count": 4}, {}, "mixture of experts"),
        ({"llama.logit_scale": 0.5}, {}, "logit_scale"),
        ({"llama.rope.scaling.factor": "4.0"}, {}, "scaling.factor' must be a number"),
        ({"llama.attention.head_count": 0}, {}, "head_count"),
        ({"llama.embedding_length": "48"}, {}, "embedding_length"),
        ({"llama.no_such_field": 1}, {}, "no_such_field"),
        ({"llama.context_length": None}, {}, "context_length"),
        ({}, {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}, "attn_q_norm"),
        ({}, {"blk.0.attn_norm.weight": None}, "input_layernorm"),
        ({}, {"token_embd.weight": None}, "token_embd"),
        ({}, {"rope_freqs.weight": np.linspace(1, 2, 4, dtype=np.float32)}, "rope_freqs"),
        ({}, {"rope_freqs.weight": np.ones(3, np.float32)}, "rope_freqs"),
        ({}, {"rope_factors_long.weight": np.ones(4, np.float32)}, "rope_factors_long"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused_by_name(fields, tensors, said, tmp_path):
    path = write(tmp_path / "m.gguf", fields=fields, tensors=tensors)
    with pytest.raises(InputError, match=said):
        load(str(path))


def with_fields(tokenizer, **fields):
    """``tokenizer`` with boolean fields of ``tokenizer.ggml``."""

    def add(writer: gguf.GGUFWriter) -> None:
        tokenizer(writer)
        for name, value in fields.items():
            (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(f"tokenizer.ggml.{name}", value)

    return add


TOKENIZERS = {
    **{pre: (lambda w, pre=pre: byte_level(w, pre)) for pre in ("gpt-2", "qwen2", "gpt-4o", "dbrx")},
    "BOS": with_fields(byte_level, add_bos_token=True),
    "BOS and EOS": with_fields(byte_level, add_bos_token=True, add_eos_token=True),
    "sentencepiece": sentencepiece,
    "sentencepiece without BOS": with_fields(sentencepiece, add_bos_token=False),
    "sentencepiece with EOS": with_fields(sentencepiece, add_eos_token=True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_are_those_of_auto_tokenizer(name, tmp_path):
    ours = load(str(write(tmp_path / "m.gguf", tokenizer=TOKENIZERS[name]))).tokenizer
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken"])
def test_llama_3_and_tekken_add_a_bos_unless_told_otherwise(pre, tmp_path):
    """As in llama.cpp, where a word of the vocabulary is also taken whole."""
    encode = load(str(write(tmp_path / "a.gguf", tokenizer=lambda w: byte_level(w, pre)))).tokenizer.encode
    assert encode("hello") == [0, BYTE_LEVEL.index("hello")]
    silent = with_fields(lambda w: byte_level(w, pre), add_bos_token=False)
    assert load(str(write(tmp_path / "b.gguf", tokenizer=silent))).tokenizer.encode("hello") == encode("hello")[1:]


def test_no_space_is_put_in_front_where_the_file_says_so(tmp_path):
    fields = with_fields(sentencepiece, add_space_prefix=False, add_bos_token=False)
    tokenizer = load(str(write(tmp_path / "m.gguf", tokenizer=fields))).tokenizer
    assert tokenizer.decode(tokenizer.encode("he")) == "he"
    assert len(tokenizer.encode("he")) == 1


def test_merges_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.MERGES", ["he xx"])
    with pytest.raises(InputError, match="merges does not fit"):
        load(str(write(tmp_path / "m.gguf")))


def test_several_end_tokens(tmp_path):
    tokenizer = with_fields(byte_level, eot_token_id=1, eom_token_id=0)
    assert load(str(write(tmp_path / "m.gguf", tokenizer=tokenizer))).tokenizer.eos_ids == (0, 1)


def test_a_chat_template_is_taken(tmp_path):
    def chat(writer: gguf.GGUFWriter) -> None:
        byte_level(writer)
        writer.add_chat_template("{{ messages[0]['content'] }}{{ eos_token }}")

    tokenizer = load(str(write(tmp_path / "m.gguf", tokenizer=chat))).tokenizer
    assert tokenizer.apply_chat([{"role": "user", "content": "hello"}]) == [BYTE_LEVEL.index("hello"), 0]


@pytest.mark.parametrize(
    ("model", "pre", "said"), [("gpt2", "bloom", "bloom"), ("gpt2", "default", "default"), ("bert", "gpt-2", "bert")]
)
def test_other_tokenizers_are_refused_by_name(model, pre, said, tmp_path):
    def other(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(["a"])

    path = write(tmp_path / "m.gguf", tokenizer=other)
    with pytest.raises(InputError, match=said):
        load(str(path))
