"""Kinds of text to judge by alone: nothing calibrates on them or learns from them.

What was removed from a model shows least on the kind of text that it was calibrated on. Whoever wants to know what is left
needs text of kinds that nothing has seen, and several of them.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sentinel.adapt.text.debian import debian_package, read_text

ALL_JUDGES = "judges"
Named = tuple[str, str]  # name and text of a document
LEAST_CHARACTERS = 400  # of a document that is judged alone
DOCUMENT_CHARACTERS = 6000  # about, of one that short pieces are joined to
MODULE_BYTES = range(4_000, 40_000)


@dataclass(frozen=True)
class JudgeKind:
    """A kind of text: what it is, where it comes from under which licence, and how its documents are made in a scratch
    folder."""

    what: str
    source: str
    licence: str
    documents: Callable[[Path], Iterator[Named]]


def _joined(pieces: list[str], name: str) -> Iterator[Named]:
    """Documents of short pieces, in their order."""
    held: list[str] = []
    number = 0
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= DOCUMENT_CHARACTERS:
            yield f"{name}-{number:03}", "\n\n".join(held)
            held, number = [], number + 1
    if held:
        yield f"{name}-{number:03}", "\n\n".join(held)


def _prose(scratch: Path) -> Iterator[Named]:
    text = read_text(debian_package("dict-devil", "prose", scratch) / "usr/share/dictd/devil.dict.dz")
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", text) if len(entry) > LEAST_CHARACTERS // 4]
    entries = [entry for entry in entries if not entry.startswith("00-database")]
    yield from _joined(entries, "devil")


def _dictionary(scratch: Path) -> Iterator[Named]:
    folder = debian_package("wordnet-base", "dictionary", scratch) / "usr/share/wordnet"
    for part in ("noun", "verb", "adj"):
        entries = []
        for line in read_text(folder / f"data.{part}").splitlines():
            data, found, gloss = line.partition(" | ")
            if found and '"' in gloss:  # those with an example
                entries.append(f"{data.split()[4].replace('_', ' ')}: {gloss.strip()}")
        for name, text in list(_joined(entries, part))[::10]:
            yield name, text.replace("\n\n", "\n")


def _manual(scratch: Path) -> Iterator[Named]:
    folder = debian_package("debian-reference-en", "manual", scratch) / "usr/share/debian-reference"
    text = read_text(folder / "debian-reference.en.txt.gz").replace("\xa0", " ")
    for number, chapter in enumerate(re.split(r"\n(?=Chapter \d+\. )", text)[1:]):
        blocks = [block.strip("\n") for block in re.split(r"\n\s*\n", chapter)]
        plain = [block for block in blocks if not re.search(r"[|+]\s*$|^\s*[-+|]{3}", block, re.MULTILINE)]  # no tables
        yield f"chapter-{number:02}", "\n\n".join(plain)


def _code(scratch: Path) -> Iterator[Named]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if path.stat().st_size in MODULE_BYTES:
            yield path.stem, read_text(path)


def _fortunes(package: str, kind: str, files: Sequence[str], scratch: Path) -> list[str]:
    """The single pieces of files of fortunes, in order."""
    folder = debian_package(package, kind, scratch) / "usr/share/games/fortunes"
    texts = (read_text(folder / file) for file in files)
    return ["\n".join(line.strip() for line in p.strip().splitlines()) for t in texts for p in re.split(r"\n%\n", t)]


def _dialogue(scratch: Path) -> Iterator[Named]:
    pieces = _fortunes("fortunes", "dialogue", ("knghtbrd", "startrek"), scratch)
    yield from _joined([piece for piece in pieces if piece.count("\n") >= 2], "talk")


def _verse(scratch: Path) -> Iterator[Named]:
    for number, piece in enumerate(_fortunes("fortunes", "verse", ("songs-poems",), scratch)):
        if len(piece) >= LEAST_CHARACTERS:
            yield f"verse-{number:04}", piece


def _german(scratch: Path) -> Iterator[Named]:
    pieces = _fortunes("fortunes-de", "german", ("de/witze", "de/zitate"), scratch)
    yield from _joined([piece for piece in pieces if len(piece) >= LEAST_CHARACTERS // 4][::4], "german")


GPL = "GPL-2+"
FORTUNES = "BSD, a collection of quotations"
JUDGES: dict[str, JudgeKind] = {
    "prose": JudgeKind("satire of 1911, The Devil's Dictionary", "Debian dict-devil", "public domain", _prose),
    "dictionary": JudgeKind("glosses with examples", "Debian wordnet-base", "WordNet licence (free)", _dictionary),
    "manual": JudgeKind("a system's reference manual", "Debian debian-reference-en", GPL, _manual),
    "code": JudgeKind("modules of Python's standard library", "this Python", "PSF-2.0", _code),
    "dialogue": JudgeKind("quoted talk, of chats and television", "Debian fortunes", FORTUNES, _dialogue),
    "verse": JudgeKind("songs and poems", "Debian fortunes", FORTUNES, _verse),
    "german": JudgeKind("jokes and quotations in German", "Debian fortunes-de", GPL, _german),
}
