"""Which kinds of text a model has seen: what it was calibrated on or learned from flatters it on more of the same kind.

A corpus that ships in a package is one kind, whichever of its documents were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sentinel.adapt.text.corpora import BUILT_IN, EVERY_BUILT_IN, SPLITS, Text, load_texts
from sentinel.adapt.text.judges import JUDGES
from sentinel.errors import InputError
from sentinel.models.record import SELF, Record


@dataclass(frozen=True)
class Seen:
    """What was read to make a model: ``names`` of texts, and fingerprints of ``documents``."""

    names: frozenset[str] = frozenset()
    documents: frozenset[str] = frozenset()

    @classmethod
    def of(cls, record: Record) -> Seen:
        """What all steps of a record took, what decided when to stop and what a teacher had seen included."""
        return cls(_names(step.texts for step in record.steps), record.seen_documents())

    def also(self, names: str, documents: Iterable[str]) -> Seen:
        """That, and the texts ``names``, joined with commas, with the fingerprints of their documents."""
        return Seen(self.names | _names([names]), self.documents.union(documents))

    def kind_of(self, text: Text) -> bool | None:
        """Whether that kind of text was seen; None where nobody can tell: a text of the user's own, where others were read.

        Text that the model wrote itself is of no kind but its own.
        """
        kind = _kind(text.label)
        if kind in self.names:
            return True
        if kind in BUILT_IN:
            return bool(self.documents) and any(
                document.fingerprint in self.documents
                for split in SPLITS
                for one in load_texts(f"{kind}:{split}", split)
                for document in one.documents
            )
        nothing = not self.names and not self.documents
        return False if kind in JUDGES or nothing or self.names == {SELF} else None


def halves(texts: Sequence[Text]) -> tuple[list[str], list[str]]:
    """The labels of the texts that may choose among models, and of those that are kept to tell how good the chosen one is:
    every second one. Whatever is chosen by a text looks better on it than it is. Raises `InputError` for a single text."""
    labels = [text.label for text in texts]
    if len(labels) < 2:
        raise InputError(
            f"one kind of text ({', '.join(labels)}) can't both choose and judge what was chosen; name two texts or more"
        )
    return labels[::2], labels[1::2]


def seen_together(kinds: Iterable[bool | None]) -> bool | None:
    """Of several texts: True when one was seen, None when that of one is not known, else False."""
    found = list(kinds)
    return True if True in found else None if None in found else False


def _kind(name: str) -> str:
    """The kind that a text's name stands for: a corpus without its split, a file or folder as it is."""
    kind, _, split = name.strip().partition(":")
    return kind if kind in BUILT_IN and split in ("", *SPLITS) else name.strip()


def _names(lists: Iterable[str]) -> frozenset[str]:
    named = {_kind(name) for names in lists for name in names.split(",") if name.strip()}
    return frozenset(named | set(BUILT_IN)) if EVERY_BUILT_IN in named else frozenset(named)
