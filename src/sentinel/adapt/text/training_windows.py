"""What a model learns from: windows of text, and held-out ones that decide when to stop."""

from __future__ import annotations

from collections.abc import Sequence

from sentinel.adapt.text.corpora import (
    Windows,
    load_texts,
    refuse_learned_text,
    refuse_shared_documents,
    sample_windows,
)
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel


def training_windows(
    models: Sequence[LoadedModel],
    text: str,
    held_out: str | None,
    tokens: int,
    held_out_tokens: int,
    length: int,
    seed: int,
) -> tuple[Windows, Windows]:
    """``tokens`` of ``text`` to train the first of ``models`` on, and ``held_out_tokens`` to judge by, in windows of
    ``length``.

    ``held_out`` None takes the valid splits of built-in texts; a text without splits gives both, of different windows.
    Raises `InputError` for windows beyond the model's context, too little text, held-out documents that one of ``models``
    (a teacher, say) has learned from, and documents that both parts would hold.
    """
    loaded = models[0]
    tokenizer = loaded.require_tokenizer()
    if length > loaded.spec.max_seq_len:
        raise InputError(
            f"windows of {length} tokens are longer than the context of {loaded.name}, {loaded.spec.max_seq_len}"
        )
    texts, judges = load_texts(text, "train"), load_texts(held_out or text, "valid")
    for model in models:
        refuse_learned_text(model.record, judges)
    seen = {document.fingerprint for one in texts for document in one.documents}
    if held_out is None and any(document.fingerprint in seen for one in judges for document in one.documents):
        both = sample_windows(texts, tokenizer, tokens + held_out_tokens, length, seed)
        count = max(1, held_out_tokens // length)
        return Windows(both.tokens[count:], both.fingerprints), Windows(both.tokens[:count], both.fingerprints)
    refuse_shared_documents(seen, judges)
    train = sample_windows(texts, tokenizer, tokens, length, seed)
    return train, sample_windows(judges, tokenizer, held_out_tokens, length, seed)
