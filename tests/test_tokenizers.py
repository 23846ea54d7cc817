"""A folder's tokenizer is the one that Hugging Face's AutoTokenizer makes of it, also after it was written again."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import spec_of
from helpers import END, byte_level, filled_decoder, letter_tokenizer, metaspace
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.sources import load
from sentinel.models.record import Record
from sentinel.models.tokenizer import TextTokenizer

TEXTS = (
    "",
    "The quick brown fox",
    " leading space",
    "  two, and a tab\t",
    "a<|endoftext|>b",
    "<s>a</s> <s>",
    "x <|im_start|>user <|im_end|> y <new> z<new>",
    "[MASK] me [MASK].",
    "lines\n\nand\r\nmore\n",
    "🙂 emoji 👩‍👩‍👧",
    "你好，世界",
    "don't stop , it 's 12345 , ok ?",
    "é\u0301 Ä ﬁ ",
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Who?\n"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}\n"
    "    {% if loop.first %}{% continue %}{% endif %}\n"
    "    {%- if m.role not in ('user', 'assistant') %}{{ raise_exception('roles') }}{% endif %}\n"
    "    {% generation %}{{ '[INST] ' + m.content.strip() + ' [/INST]' }}{% endgeneration %}\n"
    "    {% if strftime_now('%Y') | int > 2000 %}{{ {'a': '<é>'} | tojson }}{% break %}{% endif %}\n"
    "{% endfor %}"
)


def sentencepiece(kind: int) -> bytes:
    """A ``tokenizer.model``: 1 is unigram, 2 BPE."""
    proto = import_protobuf().ModelProto()
    proto.trainer_spec.model_type = kind
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id = 0, 1, 2
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    specials = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{i:02X}>", 6) for i in range(256)), ("<new>", 4)]
    for piece, piece_type in (*specials, *((p, 1) for p in ["▁t", "he", "▁the", "▁", *"theuqickbrownfx"])):
        proto.pieces.add(piece=piece, score=-float(len(proto.pieces)), type=piece_type)
    return proto.SerializeToString()


def write(folder: Path, name: str, data: object) -> None:
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


def plain(folder: Path, tokenizer: Tokenizer | None = None, **fields) -> None:
    """``tokenizer.json`` and ``tokenizer_config.json`` with some fields."""
    (tokenizer or byte_level()).save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, **fields})


def merges(folder: Path, name: str = "GPT2Tokenizer", **fields) -> None:
    """``vocab.json`` with ``merges.txt``."""
    byte_level().model.save(str(folder))
    tokens = {"bos_token": END, "eos_token": END, "unk_token": END}
    write(folder, "tokenizer_config.json", {"tokenizer_class": name, **tokens, **fields})


def remembered_truncation(folder: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    plain(folder, tokenizer)


def remembered_padding(folder: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_padding(length=16, pad_token=END)
    plain(folder, tokenizer)


def added_tokens_of_a_file(folder: Path) -> None:
    merges(folder)
    write(folder, "added_tokens.json", {"<new>": 300, "<|im_start|>": 301, "<|im_end|>": 302})
    write(folder, "special_tokens_map.json", {"eos_token": "<|im_end|>", "bos_token": END})


def added_tokens_decoder(folder: Path) -> None:
    token = {"lstrip": True, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {
        "300": {"content": "[MASK]", **token},
        "301": {"content": "<new>", **token, "special": False, "rstrip": True},
    }
    merges(folder, added_tokens_decoder=added, mask_token="[MASK]")


def named_by_the_model_alone(folder: Path) -> None:
    byte_level().model.save(str(folder))
    write(folder, "config.json", {"model_type": "gpt2"})


def llama(folder: Path, **fields) -> None:
    plain(
        folder,
        metaspace(),
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **fields,
    )
    write(folder, "config.json", {"model_type": "llama"})


def llama3(folder: Path) -> None:
    """Byte-level with a BOS that only the post-processor of tokenizer.json tells."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)]),
        ]
    )
    plain(folder, tokenizer, bos_token=END)


def sentencepiece_alone(folder: Path, kind: int, **fields) -> None:
    pytest.importorskip("sentencepiece")
    (folder / "tokenizer.model").write_bytes(sentencepiece(kind))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **fields})
    write(folder, "config.json", {"model_type": "llama"})


def tiktoken(folder: Path, name: str = "tiktoken.model", **fields) -> None:
    """A file of tiktoken's: tokens in base64 and their ranks, of which the merges follow."""
    pytest.importorskip("tiktoken")
    pieces = [bytes([i]) for i in range(256)]
    pieces += [
        *(text.encode() for text in ("th", "he", "the", " the", "qu", "12", "123")),
        "你".encode()[:2],
        "你".encode(),
    ]
    ranks = "".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces))
    (folder / name).write_text(ranks)
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write(folder, "tokenizer_config.json", {**tokens, **fields})


def tiktoken_with_a_gap(folder: Path, name: str = "tiktoken.model", **fields) -> None:
    """Special tokens that do not follow the vocabulary at once."""
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {"265": {"content": "<s>", **token}, "268": {"content": "</s>", **token}}
    tiktoken(folder, name, added_tokens_decoder=added, **fields)


def bare(folder: Path, model_type: str) -> None:
    """A vocabulary of sentencepiece, and a config that says no more than the family."""
    pytest.importorskip("sentencepiece")
    (folder / "tokenizer.model").write_bytes(sentencepiece(2))
    write(folder, "config.json", {"model_type": model_type})


def wordpiece(folder: Path) -> None:
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the quick ##ly a b , . ? it ' s don t "
    (folder / "vocab.txt").write_text(words.replace(" ", "\n"), encoding="utf-8")
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": True})


FOLDERS = {
    "tokenizer.json": plain,
    "remembered truncation": remembered_truncation,
    "remembered padding": remembered_padding,
    "prefix space in tokenizer.json": lambda f: plain(f, byte_level(add_prefix_space=True)),
    "prefix space in the config": lambda f: plain(f, add_prefix_space=True),
    "special tokens are split": lambda f: plain(f, split_special_tokens=True),
    "special tokens in the config alone": lambda f: plain(
        f,
        bos_token="<s>",
        pad_token={
            "__type": "AddedToken",
            "content": "<new>",
            "lstrip": True,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        },
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    ),
    "add_bos_token": lambda f: plain(f, bos_token=END, add_bos_token=True),
    "add_eos_token": lambda f: plain(f, bos_token=END, add_bos_token=True, add_eos_token=True),
    "add_bos_token false": lambda f: plain(f, metaspace(), bos_token="<s>", eos_token="</s>", add_bos_token=False),
    "cleaned spaces": lambda f: plain(f, clean_up_tokenization_spaces=True),
    "vocab and merges": merges,
    "vocab and merges, prefix space": lambda f: merges(f, add_prefix_space=True),
    "vocab and merges, BOS": lambda f: merges(f, add_bos_token=True),
    "vocab and merges, Qwen2": lambda f: merges(f, "Qwen2Tokenizer"),
    "vocab and merges, class with Fast": lambda f: merges(f, "GPT2TokenizerFast"),
    "added_tokens.json": added_tokens_of_a_file,
    "added_tokens_decoder": added_tokens_decoder,
    "named by the model alone": named_by_the_model_alone,
    "llama": llama,
    "llama with EOS": lambda f: llama(f, add_eos_token=True),
    "llama without BOS": lambda f: llama(f, add_bos_token=False),
    "llama not legacy": lambda f: llama(f, legacy=False, add_prefix_space=False),
    "llama 3": llama3,
    "byte-level that says Llama": lambda f: plain(f, tokenizer_class="LlamaTokenizerFast"),
    "sentencepiece BPE": lambda f: sentencepiece_alone(f, 2),
    "sentencepiece BPE with EOS": lambda f: sentencepiece_alone(f, 2, add_eos_token=True),
    "sentencepiece unigram": lambda f: sentencepiece_alone(f, 1),
    "sentencepiece without a config of its own": lambda f: bare(f, "llama"),
    "sentencepiece of Gemma": lambda f: bare(f, "gemma"),
    "tiktoken": lambda f: tiktoken(f, extra_special_tokens=["<s>", "</s>"]),
    "tiktoken with a gap": tiktoken_with_a_gap,
    "tiktoken as tokenizer.model": lambda f: tiktoken_with_a_gap(
        f, "tokenizer.model", tokenizer_class="LlamaTokenizer"
    ),
    "wordpiece": wordpiece,
    "chat in the config": lambda f: plain(
        f, additional_special_tokens=["<|im_start|>", "<|im_end|>"], chat_template=CHATML
    ),
    "chat with BOS": lambda f: llama(f, chat_template=LLAMA2),
    "chats with names": lambda f: plain(
        f, chat_template=[{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
    ),
}


def chat_in_files(folder: Path) -> None:
    plain(folder, chat_template="not this one")
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("documents")


FOLDERS["chat in files"] = chat_in_files
FOLDERS["chat in one file"] = lambda f: (plain(f), (f / "chat_template.jinja").write_text(CHATML))


@pytest.fixture(params=FOLDERS)
def folder(request, tmp_path) -> Path:
    FOLDERS[request.param](tmp_path)
    return tmp_path


def assert_same(ours: TextTokenizer, theirs) -> None:
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    if theirs.chat_template is None:
        assert ours.chat_template is None
    else:
        ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
        assert ours.apply_chat(MESSAGES) == ids
    assert ours.vocab_size == len(theirs)


def test_ids_are_those_of_auto_tokenizer(folder):
    ours, theirs = TextTokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    assert_same(ours, theirs)
    assert_same(ours, ours.to_hugging_face())


def test_a_saved_model_keeps_the_tokenizer(folder, tmp_path_factory):
    theirs, saved = AutoTokenizer.from_pretrained(folder), tmp_path_factory.mktemp("saved") / "model"
    save_checkpoint(filled_decoder(spec_of("llama-grouped")), saved, TextTokenizer.from_folder(folder), Record())
    assert_same(TextTokenizer.from_folder(saved), theirs)
    assert_same(TextTokenizer.from_folder(saved), AutoTokenizer.from_pretrained(saved))
    names = {p.name for p in folder.iterdir()} - {"config.json"}
    assert names <= {p.name for p in saved.iterdir()}


def test_a_tokenizer_that_was_changed_after_saving_is_read_anew(tmp_path):
    (tmp_path / "a").mkdir()
    plain(tmp_path / "a")
    saved = tmp_path / "saved"
    save_checkpoint(
        filled_decoder(spec_of("llama-grouped")), saved, TextTokenizer.from_folder(tmp_path / "a"), Record()
    )
    theirs = AutoTokenizer.from_pretrained(saved)
    theirs.add_special_tokens({"additional_special_tokens": ["<new>"]})
    theirs.save_pretrained(saved)
    assert_same(TextTokenizer.from_folder(saved), AutoTokenizer.from_pretrained(saved))
    assert len(TextTokenizer.from_folder(saved).encode("<new>")) == 1


def test_a_saved_tokenizer_is_read_without_transformers(tmp_path):
    save_checkpoint(filled_decoder(spec_of("llama-grouped")), tmp_path / "m", letter_tokenizer(), Record())
    code = (
        "import sys; from pathlib import Path; from sentinel.models.tokenizer import TextTokenizer; "
        f"print(TextTokenizer.from_folder(Path({str(tmp_path / 'm')!r})).encode('b a'), "
        "{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[2, 1] set()\n"


def test_a_tokenizer_of_memory_loads_through_auto_tokenizer(tmp_path):
    save_checkpoint(filled_decoder(spec_of("llama-grouped")), tmp_path / "m", letter_tokenizer(), Record())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert theirs("b a").input_ids == [2, 1]
    assert theirs.eos_token == "<end>"


@pytest.mark.parametrize(
    ("value", "expected"), [(5, (5,)), ([2, 7], (2, 7)), (None, (0,))], ids=["one", "several", "of the tokenizer"]
)
def test_end_tokens(value, expected, tmp_path):
    plain(tmp_path)
    write(tmp_path, "generation_config.json", {"eos_token_id": value})
    assert TextTokenizer.from_folder(tmp_path).eos_ids == expected


def test_damaged_tokenizers_are_refused_by_name(tmp_path):
    plain(tmp_path)
    write(tmp_path, "generation_config.json", {"eos_token_id": "2"})
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id"):
        TextTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=str(tmp_path)):
        TextTokenizer.from_folder(tmp_path)
    assert TextTokenizer.from_folder(tmp_path.parent) is None


def test_a_config_that_hugging_face_refuses_keeps_its_tokenizer(tmp_path):
    """Heads that do not divide the width are allowed with a head size, as after pruning."""
    llama(tmp_path)
    expected = TextTokenizer.from_folder(tmp_path).encode("The quick")
    heads = {"hidden_size": 48, "num_attention_heads": 5, "head_dim": 8}
    write(tmp_path, "config.json", {"model_type": "llama", **heads})
    assert TextTokenizer.from_folder(tmp_path).encode("The quick") == expected


def test_a_config_is_judged_before_the_tokenizer(tmp_path):
    plain(tmp_path)
    write(tmp_path, "config.json", {"model_type": "llama", "rms_norm_eps": "1e-5"})
    with pytest.raises(InputError, match="rms_norm_eps must be a number"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "package", "said"),
    [
        ("tokenizer.model", "sentencepiece", "pip install sentencepiece protobuf"),
        ("tiktoken.model", "tiktoken", "pip install tiktoken"),
    ],
)
def test_a_missing_package_is_named(name, package, said, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=said):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.real_model
def test_smollm2_says_what_it_is_and_takes_a_chat(smollm2):
    assert smollm2.description.startswith("SmolLM2-135M-Instruct, de-quantised from Q4_1")
    text = smollm2.tokenizer.render_chat([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("template", "said"), [(None, "no chat template"), ("{% if %}", "chat template"), (LLAMA2, "roles")]
)
def test_chats_that_can_not_be_rendered_are_refused(template, said, tmp_path):
    plain(tmp_path, chat_template=template)
    messages = [MESSAGES[1], {"role": "system", "content": "late"}]
    with pytest.raises(InputError, match=said):
        TextTokenizer.from_folder(tmp_path).apply_chat(messages)


def test_templates_run_in_a_sandbox(tmp_path):
    plain(tmp_path, chat_template="{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    with pytest.raises(InputError, match="chat template"):
        TextTokenizer.from_folder(tmp_path).apply_chat(MESSAGES)
