"""What a model learns from: windows of text, and held-out ones that decide when to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from sentinel.adapt.text.corpora import (
    Text,
    Windows,
    in_turn,
    load_texts,
    refuse_learned_text,
    refuse_shared_documents,
    sample_windows,
)
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer.calibration_text import split_own
from sentinel.infer.own_text import own_text

Both = tuple[Windows, Windows]  # to train on, and held out


def training_windows(
    models: Sequence[LoadedModel],
    text: str,
    held_out: str | None,
    tokens: int,
    held_out_tokens: int,
    length: int,
    seed: int,
) -> Both:
    """``tokens`` of ``text`` to train the first of ``models`` on, and ``held_out_tokens`` to judge by, in windows of
    ``length``, in equal parts of all texts.

    The last of ``models`` is the teacher; ``self`` is text that it writes (as in LLM-QAT, Liu et al. 2023). ``held_out``
    None takes the valid splits of built-in texts, and other documents of what the teacher wrote; a text without splits
    gives both, of different windows. Raises `InputError` for windows beyond the model's context, too little text, held-out
    documents that one of ``models`` has learned from, and documents that both parts would hold.
    """
    loaded = models[0]
    if length > loaded.spec.max_seq_len:
        raise InputError(
            f"windows of {length} tokens are longer than the context of {loaded.name}, {loaded.spec.max_seq_len}"
        )
    own, others = split_own(text)
    if not own:
        return _of_texts(models, text, held_out, tokens, held_out_tokens, length, seed)
    if not others:
        return _of_teacher(models, held_out, tokens, held_out_tokens, length, seed)
    share = 1 + len(load_texts(others, "train"))
    part, held_part = tokens // share, held_out_tokens // share
    written = _of_teacher(models, held_out, part, held_part, length, seed)
    found = _of_texts(models, others, held_out, tokens - part, held_out_tokens - held_part, length, seed)
    return _joined(written[0], found[0]), found[1] if held_out is not None else _joined(written[1], found[1])


def _of_teacher(
    models: Sequence[LoadedModel], held_out: str | None, tokens: int, held_out_tokens: int, length: int, seed: int
) -> Both:
    """Windows of what the last of ``models`` writes; its first documents are held out."""
    teacher = models[-1]
    tokens, kept = max(tokens, length), 0 if held_out is not None else max(held_out_tokens, length)
    written = own_text(teacher, tokens + kept, length, seed + 1)  # other documents than those of calibration
    end = None if teacher.tokenizer is None else next(iter(teacher.tokenizer.eos_ids), None)
    count, sizes = 0, list(map(len, written.documents))
    while sum(sizes[:count]) < kept:
        count += 1
    parts = written.documents[count:], written.documents[:count]
    train, own_judges = (
        in_turn([dataclasses.replace(written, documents=part).windows(size // length, length, end)], written.settings)
        for part, size in zip(parts, (tokens, kept), strict=True)
    )
    if held_out is None:
        return train, own_judges
    judges = _judges(models, held_out)
    return train, sample_windows(judges, models[0].require_tokenizer(), held_out_tokens, length, seed)


def _of_texts(
    models: Sequence[LoadedModel],
    text: str,
    held_out: str | None,
    tokens: int,
    held_out_tokens: int,
    length: int,
    seed: int,
) -> Both:
    tokenizer = models[0].require_tokenizer()
    texts, judges = load_texts(text, "train"), _judges(models, held_out or text)
    seen = {document.fingerprint for one in texts for document in one.documents}
    if held_out is None and any(document.fingerprint in seen for one in judges for document in one.documents):
        both = sample_windows(texts, tokenizer, tokens + held_out_tokens, length, seed)
        count = max(1, held_out_tokens // length)
        return Windows(both.tokens[count:], both.fingerprints), Windows(both.tokens[:count], both.fingerprints)
    refuse_shared_documents(seen, judges)
    train = sample_windows(texts, tokenizer, tokens, length, seed)
    return train, sample_windows(judges, tokenizer, held_out_tokens, length, seed)


def _judges(models: Sequence[LoadedModel], names: str) -> list[Text]:
    """Held-out texts, of which none of ``models`` has learned."""
    judges = load_texts(names, "valid")
    for model in models:
        refuse_learned_text(model.record, judges)
    return judges


def _joined(one: Windows, other: Windows) -> Windows:
    fingerprints = tuple(sorted({*one.fingerprints, *other.fingerprints}))
    return Windows(torch.cat((one.tokens, other.tokens)), fingerprints, one.own_text)
