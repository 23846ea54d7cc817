"""A tokenizer as the fields of a GGUF file: byte-level BPE, or BPE of sentencepiece's kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gguf
from tokenizers import Tokenizer

from sentinel.errors import InputError
from sentinel.formats.gguf.tokenizer import build_tokenizer, byte_level_splits
from sentinel.models.tokenizer import TextTokenizer

# A name of each of the splits that llama.cpp keeps. Of several with the same split, the one of the most models.
SPLITS = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o")
NORMALISERS = (None, "NFC")  # the second one changes only what nobody types; llama.cpp leaves it out
TEXTS = (
    "Hello, it's 12345  tests\n\n of   naïve 東京 e\u0301 \u00a0\t0.5% don't I'LL HTTPServer\r\n  x_y(z) -> \U0001f642 ",
    " a",
    "a",
    "  two spaces",
    "\n",
    "1234567890",
    "ÀÉ ßü Ж здравствуй",
    "",
)
DIGIT = "<0x"  # of sentencepiece's bytes


def tokenizer_fields(tokenizer: TextTokenizer | None, vocab_size: int) -> dict[str, Any]:
    """Fields of the file, by their full names, for a model of ``vocab_size`` tokens.

    Raises `InputError` that names a tokenizer which llama.cpp does not have, or which the fields do not tell exactly: a
    tokenizer is made of them again, and tried.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    fast = tokenizer.fast
    data = json.loads(fast.to_str())
    model = data["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise InputError(
            f"a GGUF file can't hold this tokenizer ({model['type']}); BPE of bytes or sentencepiece it can"
        )
    tokens, kinds = _tokens(fast, data, vocab_size)
    fields: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        fields |= _sentencepiece(data, tokens, merges)
    else:
        fields |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _split(fast, data)}
        fields["tokenizer.ggml.merges"] = merges
    fields |= _special(tokenizer, data, len(tokens))
    if tokenizer.chat_template is not None:
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    _require_same(fast, fields)
    return fields


def _tokens(fast: Tokenizer, data: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every token of the model by its id, and its kind. Ids that the tokenizer lacks are unused; those of special tokens
    beyond the model's are left out."""
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [int(gguf.TokenType.UNUSED)] * vocab_size
    for token, index in fast.get_vocab().items():
        if index < vocab_size:
            tokens[index], kinds[index] = token, int(gguf.TokenType.NORMAL)
    if data["model"].get("byte_fallback"):
        for index, token in enumerate(tokens):
            if token.startswith(DIGIT) and token.endswith(">") and len(token) == 6:
                kinds[index] = int(gguf.TokenType.BYTE)
    for index, added in fast.get_added_tokens_decoder().items():
        if index < vocab_size:
            kinds[index] = int(gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED)
    unknown = data["model"].get("unk_token")
    if unknown in tokens and data["model"].get("byte_fallback"):
        kinds[tokens.index(unknown)] = int(gguf.TokenType.UNKNOWN)
    return tokens, kinds


def _split(fast: Tokenizer, data: dict[str, Any]) -> str:
    """The name by which llama.cpp knows how this tokenizer cuts a text before it joins bytes."""
    cleaning: dict[str, Any] | None = data.get("normalizer")
    normaliser = None if cleaning is None else cleaning["type"]
    before = fast.pre_tokenizer
    if normaliser in NORMALISERS and before is not None:
        ours = [before.pre_tokenize_str(text) for text in TEXTS]
        whole = bool(data["model"].get("ignore_merges"))
        for name in SPLITS:
            theirs, ignores = byte_level_splits(name)
            if ignores == whole and [theirs.pre_tokenize_str(text) for text in TEXTS] == ours:
                return name
    raise InputError("a GGUF file can't hold this tokenizer: llama.cpp has no name for how it cuts a text into words")


def _sentencepiece(data: dict[str, Any], tokens: Sequence[str], merges: Sequence[str]) -> dict[str, Any]:
    """Pieces with scores: the earlier a piece is joined, the higher."""
    scores: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        scores.setdefault(merge.replace(" ", ""), -float(rank))
    last = -float(len(merges))
    normaliser, before = json.dumps(data.get("normalizer")), json.dumps(data.get("pre_tokenizer"))
    prefix = (
        '"Prepend"' in normaliser or '"prepend_scheme": "first"' in before or '"prepend_scheme": "always"' in before
    )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [scores.get(token, last) for token in tokens],
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _special(tokenizer: TextTokenizer, data: dict[str, Any], n_token: int) -> dict[str, Any]:
    """Ids of special tokens, and which of them are put around a text."""
    fast = tokenizer.fast
    ids = {
        theirs: tokenizer.special_id(ours)
        for theirs, ours in {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}.items()
    }
    ends = list(dict.fromkeys(tokenizer.eos_ids))
    if ends and ids["eos"] not in ends:
        ids["eos"] = ends[0]
    others = [end for end in ends if end != ids["eos"]]
    if len(others) > 2:
        raise InputError(f"a GGUF file can't hold this tokenizer: {len(ends)} tokens end a text, and 3 can")
    ids |= dict(zip(("eot", "eom"), others, strict=False))
    if ids["unknown"] is None and data["model"].get("unk_token"):
        ids["unknown"] = fast.token_to_id(data["model"]["unk_token"])
    bare, around = fast.encode("a", add_special_tokens=False).ids, fast.encode("a").ids
    start = around[: len(around) - len(bare)] != [] and around[0] != bare[0]
    if start and ids["bos"] is None:
        ids["bos"] = around[0]
    found: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items() if index is not None and index < n_token
    }
    found["tokenizer.ggml.add_bos_token"] = start
    found["tokenizer.ggml.add_eos_token"] = len(around) > len(bare) + start
    return found


def _require_same(fast: Tokenizer, fields: dict[str, Any]) -> None:
    """Raise `InputError` unless a tokenizer made of the fields gives the same tokens."""

    def get(name: str, default: Any = None) -> Any:
        return fields.get(name, default)

    again = build_tokenizer(get, "the GGUF file")
    texts = [*TEXTS, *(f"a {added.content}b" for added in list(fast.get_added_tokens_decoder().values())[:3])]
    if fields.get("tokenizer.ggml.add_space_prefix"):  # before spaces and behind special tokens, readers differ in it
        texts = [text for text in TEXTS if not text.startswith(" ")]
    for text in texts:
        if again.encode(text).ids != fast.encode(text).ids:
            raise InputError(f"a GGUF file can't hold this tokenizer: {text!r} would become other tokens")
