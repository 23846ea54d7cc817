"""Text to calibrate on: the model's own, named ``self``, and that of files and corpora."""

from __future__ import annotations

from collections.abc import Sequence

from sentinel.adapt.text.corpora import (
    Text,
    Windows,
    in_turn,
    load_texts,
    refuse_shared_documents,
    windows_of,
)
from sentinel.formats.sources import LoadedModel, StoredModel
from sentinel.infer.own_text import own_text
from sentinel.models.record import SELF

WINDOW = 512


def split_own(names: str) -> tuple[bool, str]:
    """Whether ``self`` is among the ``names`` of texts, and the others."""
    parts = names.split(",")
    others = [part for part in parts if part.strip() != SELF]
    return len(others) < len(parts), ",".join(others)


def calibration_texts(names: str, judges: Sequence[Text] = ()) -> list[Text]:
    """The texts among ``names`` but for the model's own; `InputError` when they share a document with ``judges``."""
    _, others = split_own(names)
    texts = load_texts(others, "train") if others else []
    refuse_shared_documents((document.fingerprint for text in texts for document in text.documents), judges)
    return texts


def calibration_windows(
    loaded: LoadedModel,
    names: str,
    tokens: int,
    *,
    length: int = WINDOW,
    seed: int = 0,
    judges: Sequence[Text] = (),
) -> Windows:
    """``tokens`` tokens of the texts ``names`` in windows of ``length`` or the model's context, in equal parts.

    ``self`` is text that the model writes itself (`own_text`), which needs no tokenizer. Raises `InputError` for a text
    that is too short, and for one that shares a document with ``judges``.
    """
    length = min(length, loaded.spec.max_seq_len)
    own, _ = split_own(names)
    texts = calibration_texts(names, judges)
    each = max(1, tokens // length // (len(texts) + own))
    chosen = [windows_of(text, loaded.require_tokenizer(), each, length, seed) for text in texts]
    if not own:
        return in_turn(chosen)
    written = own_text(loaded, each * length, length, seed)
    end = None if loaded.tokenizer is None else next(iter(loaded.tokenizer.eos_ids), None)
    return in_turn([written.windows(each, length, end), *chosen], written.settings)


def stored_windows(model: StoredModel, names: str, tokens: int, seed: int = 0) -> Windows:
    """`calibration_windows` of a model whose weights are not read, so that it can't write a text itself."""
    length, texts = min(WINDOW, model.spec.max_seq_len), calibration_texts(names)
    each = max(1, tokens // length // len(texts))
    return in_turn([windows_of(text, model.require_tokenizer(), each, length, seed) for text in texts])
