"""Text that a model writes itself, to be calibrated on.

What was removed from a model shows least on the kind of text that it was calibrated on; what a model writes freely is of
all the kinds that it knows (as in LLM-QAT, Liu et al. 2023). Documents are sampled at temperature 1 from the nucleus. They
begin with what the tokenizer puts before every text, or with a random token where that is nothing; of a chat model, some
begin as its template does, and the model writes the user's turn and then its own (as in Magpie, Xu et al. 2024).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sentinel.adapt.text.packing import Pack, Window
from sentinel.errors import InputError
from sentinel.files import make_folder, write_text
from sentinel.formats.packages import OWN_TEXTS, place_of
from sentinel.formats.sources import LoadedModel
from sentinel.infer.engine import Engine, Logits
from sentinel.infer.opening import make_engine
from sentinel.infer.sampling import draw_nucleus
from sentinel.infer.sequence import OpenSequence
from sentinel.models.decoder import Decoder
from sentinel.models.fingerprint import weights_fingerprint
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import progress_bar, say

VERSION = 2
TOP_P = 0.98
CHAT_EVERY = 4  # documents of a chat model of which one is a chat
AT_ONCE = 16  # sequences
MARK = "sentinel-marks-what-the-user-says"


@dataclass(frozen=True)
class Openings:
    """How documents begin. ``before`` are the tokens in front of every text, ``first`` those that one may begin with
    instead; ``asked`` and ``answered`` are what a chat template puts before the user's words and after them."""

    before: tuple[int, ...]
    first: tuple[int, ...]
    ends: tuple[int, ...]
    asked: tuple[int, ...] = ()
    answered: tuple[int, ...] = ()

    def begin(self, number: int, seed: int, length: int) -> Writing:
        """Document ``number``, with at least one token and fewer than ``length``, unless that is 1."""
        stream = np.random.default_rng((seed, number))
        if self.asked and len(self.asked) < length and number % CHAT_EVERY == CHAT_EVERY - 1:
            return Writing(list(self.asked), stream, self.answered)
        before = self.before[: max(1, length - 1)]
        return Writing(list(before) or [self.first[int(stream.integers(len(self.first)))]], stream)


@dataclass(eq=False)
class Writing:
    """A document that is being written; ``answer`` are the tokens that follow the end of a user's turn."""

    ids: list[int]
    stream: np.random.Generator
    answer: tuple[int, ...] = ()
    sequence: OpenSequence | None = field(default=None)


def openings_of(vocab_size: int, tokenizer: TextTokenizer | None) -> Openings:
    """How documents of a model of ``vocab_size`` tokens begin; without a tokenizer, with any token."""
    if tokenizer is None:
        return Openings((), tuple(range(vocab_size)), ())
    ends = tokenizer.eos_ids
    coded = tokenizer.fast.encode("a")
    marked = zip(coded.ids, coded.special_tokens_mask, strict=True)
    before = tuple(int(token) for token, _ in itertools.takewhile(lambda pair: pair[1], marked))
    first = tuple(token for token in range(min(vocab_size, tokenizer.vocab_size)) if token not in ends)
    asked, answered = _chat_parts(tokenizer)
    known = all(token < vocab_size for token in (*before, *asked, *answered))
    return Openings(before, first or (0,), ends, asked, answered) if known else Openings((), first or (0,), ends)


def _chat_parts(tokenizer: TextTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens that the chat template puts before the user's words and after them; none without a template that has both."""
    if tokenizer.chat_template is None:
        return (), ()
    try:
        before, found, after = tokenizer.render_chat([{"role": "user", "content": MARK}]).partition(MARK)
    except InputError:
        return (), ()
    asked, answered = (tokenizer.fast.encode(part, add_special_tokens=False).ids for part in (before, after))
    return (tuple(asked), tuple(answered)) if found and asked and answered else ((), ())


def write_documents(
    engine: Engine,
    openings: Openings,
    n_token: int,
    length: int,
    seed: int,
    report: Callable[[int], object] = lambda done: None,
) -> list[list[int]]:
    """Documents of at most ``length`` tokens, and ``n_token`` in all or a few more; seeded.

    Every document draws from a random stream of its own, and all that are begun are written to their end, so that the
    short ones are no more than their share. ``report`` is told how many tokens there are. Raises `InputError` for a model
    that predicts NaN.
    """
    documents: list[Writing] = []
    running: dict[Writing, Logits] = {}
    most = min(AT_ONCE, engine.max_sequences or AT_ONCE)
    try:
        while True:
            ended = sum(len(one.ids) for one in documents if one not in running)
            taken = ended + len(running) * length  # at most
            while len(running) < most and taken < n_token:
                one = openings.begin(len(documents), seed, length)
                documents.append(one)
                taken += length
                if len(one.ids) < length:
                    one.sequence, running[one] = engine.open(one.ids, length - len(one.ids))
                else:
                    taken -= length - len(one.ids)
            if not running:
                return [one.ids for one in documents]
            _write_on(engine, running, openings.ends, length)
            report(sum(len(one.ids) for one in documents))
    finally:
        engine.close(*(one.sequence for one in running if one.sequence is not None))


def _write_on(engine: Engine, running: dict[Writing, Logits], ends: Sequence[int], length: int) -> None:
    """One more token of each document; those that end leave ``running``."""
    going: list[tuple[OpenSequence, int, Writing]] = []
    for one, logits in list(running.items()):
        if np.isnan(logits).any():
            raise InputError("the model predicts NaN, so that it can't write a text; check its weights")
        token = draw_nucleus(logits, TOP_P, one.stream)
        assert one.sequence is not None
        if token in ends and one.answer and len(one.ids) + len(one.answer) < length:
            running[one] = engine.extend(one.sequence, one.answer)
            one.ids += one.answer
            one.answer = ()
            continue
        one.ids.append(token)
        if token in ends or len(one.ids) == length:
            engine.close(one.sequence)
            del running[one]
        else:
            going.append((one.sequence, token, one))
    if going:
        rows = engine.step([sequence for sequence, _, _ in going], [token for _, token, _ in going])
        running.update({one: row for (_, _, one), row in zip(going, rows, strict=True)})


@dataclass(frozen=True)
class OwnText:
    """What a model wrote: ``documents`` of token ids, and the ``settings`` that made it, for the record."""

    documents: tuple[tuple[int, ...], ...]
    settings: Mapping[str, Any]

    def windows(self, needed: int, length: int, end: int | None) -> list[Window]:
        """``needed`` windows: documents of the whole ``length``, and shorter ones packed with ``end`` between."""
        pack, found = Pack(length, end), list[Window]()
        for document in self.documents:
            ids, source = list(document), _fingerprint(document)
            found += [Window(ids, frozenset({source}))] if len(ids) == length else pack.add(ids, source)
        return found[:needed]


def own_text(loaded: LoadedModel, n_token: int, length: int, seed: int = 0) -> OwnText:
    """At least ``n_token`` tokens of documents of at most ``length`` tokens that the model wrote.

    They are kept in the cache, by the weights and all settings, and sampled the first time: at level 3 in int8, at level 1
    where the model or the machine has no level 3. Raises `InputError` for a tokenizer that is not the model's.
    """
    tokenizer = None if loaded.tokenizer is None else loaded.require_tokenizer()
    asked: dict[str, Any] = {
        "version": VERSION,
        "weights": weights_fingerprint(loaded.decoder),
        "tokens": n_token,
        "length": length,
        "seed": seed,
        "temperature": 1.0,
        "top_p": TOP_P,
    }
    openings = openings_of(loaded.spec.vocab_size, tokenizer)
    template = None if tokenizer is None else tokenizer.chat_template  # not its tokens, which may hold a date
    key = json.dumps([asked, openings.before, len(openings.first), openings.ends, template])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    file = place_of(OWN_TEXTS, name) / name
    found = _recall(file)
    if found is None:
        say(f"{loaded.name} writes {n_token:,} tokens of calibration text, once; they are kept in {file}")
        engine, documents = _sampled(loaded.decoder, openings, n_token, length, seed)
        settings = {
            "model": loaded.name,
            **{name: value for name, value in asked.items() if name != "version"},
            "chats": f"1 in {CHAT_EVERY}" if openings.asked else "none",
            "engine": engine,
            "fingerprint": _fingerprint(documents),
        }
        found = OwnText(tuple(map(tuple, documents)), settings)
        make_folder(file.parent)
        write_text(file, json.dumps({"settings": dict(found.settings), "documents": found.documents}) + "\n")
    return found


def _sampled(decoder: Decoder, openings: Openings, n_token: int, length: int, seed: int) -> tuple[str, list[list[int]]]:
    """The name of the engine, and the documents."""
    try:
        engine = make_engine(decoder, 3)
    except InputError:
        engine = make_engine(decoder, 1)
    try:
        with progress_bar("Sampling calibration text", done=0.0) as show:
            documents = write_documents(
                engine,
                openings,
                n_token,
                length,
                seed,
                lambda done: show(min(1.0, done / n_token), "Sampling calibration text"),
            )
    finally:
        engine.release()
    return f"{engine.name}, {engine.precision}", documents


def _recall(file: Path) -> OwnText | None:
    """What was kept; None where nothing is, or it is not as it was written."""
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        found = OwnText(tuple(map(tuple, body["documents"])), body["settings"])
        return found if found.settings["fingerprint"] == _fingerprint(found.documents) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fingerprint(tokens: Sequence[int] | Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]
