"""Which bytes of a text its tokens stand for."""

# pyright: reportUnknownMemberType=false
# NumPy's reshape has an overload without types.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.tokenizer import TextTokenizer


def token_bytes(tokenizer: TextTokenizer, text: str) -> tuple[list[int], NDArray[np.float64]]:
    """Token ids of ``text`` [T], and how many UTF-8 bytes of it each of them stands for [T].

    A token stands for what lies between the end of the one before it and its own end, so that spaces and accents which a
    tokenizer drops count, and all bytes of a text are counted once. Tokens that share a character share its bytes evenly.
    Special tokens stand for no text, whether the tokenizer adds them or the text spells them out.
    """
    found = tokenizer.fast.encode(text)
    special = np.isin(found.ids, special_ids(tokenizer)) | np.array(found.special_tokens_mask, bool)
    widths = _bytes_of_characters(text)
    offsets = np.array(found.offsets, int).reshape(-1, 2)
    for start, end in offsets[special]:
        widths[start:end] = 0
    sizes = np.zeros(len(found.ids))
    if not special.all():
        ends = np.maximum.accumulate(offsets[~special, 1])
        ends[-1] = len(text)  # what is dropped at the end belongs to the last one
        sizes[~special] = _shared(np.diff(np.concatenate(([0], np.cumsum(widths)))[ends], prepend=0))
    return found.ids, sizes


def special_ids(tokenizer: TextTokenizer) -> list[int]:
    """Ids of the tokens that are no text: ends, padding, turns of a chat."""
    return [number for number, token in tokenizer.fast.get_added_tokens_decoder().items() if token.special]


def check_vocabulary(tokenizer: TextTokenizer, vocab_size: int, model: str) -> None:
    """Raise `InputError` when plain text may give token ids that a model of ``vocab_size`` tokens does not have.

    Special tokens beyond them are let pass: a padding token that was added for training is in many checkpoints, and no
    text gives it. A text that spells it out is refused where it is read, by `check_ids`.
    """
    if tokenizer.vocab_size <= vocab_size:
        return
    special = set(special_ids(tokenizer))
    largest = max((number for number in tokenizer.fast.get_vocab().values() if number not in special), default=-1)
    if largest >= vocab_size:
        raise InputError(
            f"the tokenizer of {model} has ids up to {largest}, but the model has only {vocab_size} tokens; give the "
            "model its own tokenizer"
        )


def check_ids(largest: int, vocab_size: int) -> None:
    """Raise `InputError` for a text whose largest token id is beyond a model's vocabulary."""
    if largest >= vocab_size:
        raise InputError(
            f"the text holds token {largest}, but the model has only {vocab_size} tokens; give the model's own "
            "tokenizer, or a text without that token"
        )


def _bytes_of_characters(text: str) -> NDArray[np.int64]:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return 1 + (codes >= 0x80).astype(int) + (codes >= 0x800) + (codes >= 0x10000)


def _shared(gained: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bytes that a token gained, divided among it and those right behind it that gained none."""
    group = np.maximum(np.cumsum(gained > 0) - 1, 0)
    return (np.bincount(group, gained) / np.bincount(group))[group]
