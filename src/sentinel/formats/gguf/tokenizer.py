"""The tokenizer stored in a GGUF file: byte-level BPE ('gpt2') or sentencepiece BPE ('llama').

The splits are those that llama.cpp (``src/llama-vocab.cpp``) keeps under each name of ``tokenizer.ggml.pre``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from sentinel.errors import InputError

# Returns a field of the file, or the default; without a default the field must be there.
Get = Callable[..., Any]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORD, REST = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
ENDS, OTHER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2, TEKKEN = LLAMA3.replace("{1,3}", ""), rf"{WORD}|{REST}|\p{{N}}{OTHER}"
GPT4O = rf"{WORD}{ENDS}|{REST}{ENDS}|\p{{N}}{{1,3}}{OTHER}"

PLAIN = ("gpt-2", "jina-de", "jina-es", "jina-v2-de", "jina-v2-es", "mpt", "olmo", "phi-2", "roberta-bpe")
DIGITS = ("codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder")  # every digit alone
WITH_BOS = dict.fromkeys(("falcon3", "llama-bpe", "llama-v3", "llama3", "pixtral"), LLAMA3) | {"tekken": TEKKEN}
SPLITS = {
    **WITH_BOS,
    **dict.fromkeys(("chatglm-bpe", "dbrx", "glm4", "smaug-bpe"), LLAMA3),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "qwen2", "stablelm2"), QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), GPT4O),
}


def build_tokenizer(get: Get, path: object) -> Tokenizer:
    """The tokenizer that the fields of the GGUF file ``path`` describe; `InputError` names a kind that is not known."""
    kind, split = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre", "default")
    tokens = list(get("tokenizer.ggml.tokens"))
    kinds = list(get("tokenizer.ggml.token_type", [gguf.TokenType.NORMAL] * len(tokens)))
    if len(kinds) != len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if kind == "gpt2" and (split in PLAIN or split in DIGITS or split in SPLITS):
        merges = get("tokenizer.ggml.merges")
        try:
            tokenizer = _byte_level(vocabulary, merges, split)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise InputError(f"{path}: tokenizer.ggml.merges does not fit the tokens ({error})") from error
    elif kind == "llama":
        tokenizer = _sentencepiece(vocabulary, get, path)
    else:
        known = ", ".join(sorted({*PLAIN, *DIGITS, *SPLITS}))
        raise InputError(
            f"{path}: its tokenizer ({kind!r}, pre-tokenizer {split!r}) is not supported; "
            f"'llama' is, and 'gpt2' with {known}"
        )
    # Special tokens, and those that a user defined, are found whole in a text.
    whole = {gguf.TokenType.CONTROL: True, gguf.TokenType.USER_DEFINED: False}
    if kind == "llama":
        whole[gguf.TokenType.UNKNOWN] = True
    added = [
        AddedToken(t, special=whole[k], normalized=False) for t, k in zip(tokens, kinds, strict=True) if k in whole
    ]
    tokenizer.add_tokens([token for token in added if not token.special])  # pyright: ignore[reportUnknownMemberType]
    tokenizer.add_special_tokens([token for token in added if token.special])  # pyright: ignore[reportUnknownMemberType]
    _surround(tokenizer, get, tokens, path)
    return tokenizer


def adds(get: Get, name: str) -> bool:
    """Whether a "bos" or "eos" token is put around a text; where the file is silent, as llama.cpp does it."""
    bos = get("tokenizer.ggml.model") == "llama" or get("tokenizer.ggml.pre", "default") in WITH_BOS
    return bool(get(f"tokenizer.ggml.add_{name}_token", name == "bos" and bos))


def _surround(tokenizer: Tokenizer, get: Get, tokens: Sequence[str], path: object) -> None:
    used = {name: get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos") if adds(get, name)}
    if any(not 0 <= index < len(tokens) for index in used.values()):
        raise InputError(f"{path}: a special token is outside of the {len(tokens)} tokens")
    if used:
        parts = {name: [f"{tokens[index]}:0"] for name, index in used.items()}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*parts.get("bos", []), "$A:0", *parts.get("eos", [])],
            special_tokens=[(tokens[index], index) for index in {*used.values()}],
        )


def byte_level_splits(split: str) -> tuple[pre_tokenizers.PreTokenizer, bool]:
    """How a text is cut before bytes are joined, by llama.cpp's name, and whether words of the vocabulary stay whole."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split not in SPLITS)
    whole = split in WITH_BOS
    if split in PLAIN:
        return byte_level, whole
    if split in DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]), whole
    pieces = pre_tokenizers.Split(Regex(SPLITS[split]), behavior="isolated")
    return pre_tokenizers.Sequence([pieces, byte_level]), whole


def _byte_level(vocabulary: dict[str, int], merges: Sequence[str], split: str) -> Tokenizer:
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    cut, whole = byte_level_splits(split)
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=whole))  # pyright: ignore
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: dict[str, int], get: Get, path: object) -> Tokenizer:
    """Pieces are merged best score first; what is no piece is spelled in bytes."""
    scores = get("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary):
        raise InputError(f"{path}: tokenizer.ggml.scores has {len(scores)} entries for {len(vocabulary)} tokens")
    merges: list[tuple[float, int, int, str, str]] = []
    for piece, score in zip(vocabulary, scores, strict=True):
        for i in range(1, len(piece)):
            left, right = piece[:i], piece[i:]
            if left in vocabulary and right in vocabulary:
                merges.append((float(score), len(left), len(right), left, right))
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    pairs = [(left, right) for *_, left, right in merges]
    unknown = next((t for t, i in vocabulary.items() if i == get("tokenizer.ggml.unknown_token_id", 0)), None)
    bpe = models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)  # pyright: ignore
    tokenizer = Tokenizer(bpe)
    prefix = bool(get("tokenizer.ggml.add_space_prefix", True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first" if prefix else "never", split=False
    )
    stripped = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    return tokenizer
