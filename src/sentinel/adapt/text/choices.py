"""Small zero-shot tasks, made of the texts that are kept to judge by: choose the continuation that the text has.

They need no download beyond these texts, and nobody's data set. Each has a chance level; what is asked is what the texts
happen to hold, so that scores compare models with each other and with chance, and with no published number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sentinel.adapt.text.corpora import Document, load_texts
from sentinel.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """``choices`` are pairs of a context and what continues it; that of the number ``answer`` is right."""

    choices: tuple[tuple[str, str], ...]
    answer: int


@dataclass(frozen=True)
class Task:
    """What is asked, of which kinds of text, how many choices there are, and how items are drawn of their documents."""

    what: str
    kinds: tuple[str, ...]
    n_choice: int
    items: Callable[[Sequence[Document], np.random.Generator], Iterator[Item]]

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.n_choice


CONTEXT_WORDS = range(25, 70)  # of a passage whose last word is asked for
SINGULAR, PLURAL = ("is", "was", "has"), ("are", "were", "have")
# A subject by its determiner and the end of its noun, beside or behind another noun, and the verb that agrees with it.
SUBJECT = re.compile(
    r"\b(?:(?:the|this|each|every|another|no) [a-z]+[^\Ws\d_](?: (?:of|in|from|to|for) (?:the|these|all) [a-z]+s)?"
    r"(?= (?P<one>is|was|has)\b)"
    r"|(?:the|these|those|many|several|most|few) [a-z]+[^\Wsui\d_]s"
    r"(?: (?:of|in|from|to|for) (?:the|this|each) [a-z]+[^\Ws\d_])?"
    r"(?= (?P<many>are|were|have)\b))",
    re.IGNORECASE,
)


def _last_words(documents: Sequence[Document], rng: np.random.Generator) -> Iterator[Item]:
    """Passages that end with a word that was in them before; the others to choose from were in them too."""
    found: list[Item] = []
    for document in documents:
        text = " ".join(document.text.split())
        for match in re.finditer(r"[a-z]{4,}(?=[.!?](?:\s|$))", text):
            words = text[: match.start()].split()[-CONTEXT_WORDS[-1] :]
            word = match.group()
            known = [w for w in dict.fromkeys(re.findall(r"\b[a-z]{4,}\b", " ".join(words))) if w != word]
            if len(words) in CONTEXT_WORDS and word in words and len(known) >= 3:
                found.append(_shuffled(" ".join(words), [word, *rng.choice(known, 3, replace=False).tolist()], rng))
    yield from _drawn(found, rng)


def _agreement(documents: Sequence[Document], rng: np.random.Generator) -> Iterator[Item]:
    """Sentences up to a verb that agrees with its subject, and the same verb in the other number; both alike often."""
    found: tuple[list[Item], list[Item]] = ([], [])
    for document in documents:
        for sentence in re.split(r"(?<=[.!?;:])\s+", " ".join(document.text.split())):
            match = SUBJECT.search(sentence)
            if match is None:
                continue
            verb, many = match.group("one") or match.group("many"), match.group("many") is not None
            forms = (PLURAL, SINGULAR) if many else (SINGULAR, PLURAL)
            other = forms[1][forms[0].index(verb.lower())]
            found[many].append(_shuffled(sentence[: match.end()], [verb, other], rng))
    for pair in zip(*(_drawn(items, rng) for items in found), strict=False):
        yield from pair


def _definitions(documents: Sequence[Document], rng: np.random.Generator) -> Iterator[Item]:
    """Words with the same definition behind each; all are of one part of speech."""
    parts: dict[str, list[tuple[str, str]]] = {}
    for document in documents:
        for line in document.text.splitlines():
            word, _, gloss = line.partition(": ")
            meaning = gloss.partition('; "')[0].strip()
            if meaning and word.isalpha() and word.islower() and word not in meaning.split():
                parts.setdefault(document.name.partition("-")[0], []).append((word, meaning))
    of_part = {part: list(dict.fromkeys(word for word, _ in entries)) for part, entries in parts.items()}
    for part, word, meaning in _drawn([(part, *entry) for part, entries in parts.items() for entry in entries], rng):
        others = [other for other in of_part[part] if other != word]
        if len(others) >= 3:
            words = [word, *rng.choice(others, 3, replace=False).tolist()]
            order = rng.permutation(len(words))
            yield Item(tuple((f"{words[i]}:", f" {meaning}") for i in order), int(np.argmin(order)))


def _shuffled(context: str, words: Sequence[str], rng: np.random.Generator) -> Item:
    """The first of ``words`` is right; the order is drawn."""
    order = rng.permutation(len(words))
    return Item(tuple((context, f" {words[i]}") for i in order), int(np.argmin(order)))


def _drawn(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    """The items in a drawn order."""
    return [items[i] for i in rng.permutation(len(items))]


ENGLISH = ("prose", "manual", "dialogue")
TASKS: dict[str, Task] = {
    "last-word": Task("the last word of a passage, among words that it holds", ENGLISH, 4, _last_words),
    "agreement": Task(
        "the verb that agrees with its subject, of two forms", (*ENGLISH, "verse", "code"), 2, _agreement
    ),
    "definition": Task("the word that a definition belongs to", ("dictionary",), 4, _definitions),
}


def task_items(name: str, count: int, seed: int = 0) -> list[Item]:
    """``count`` items of a task, or all that its texts give; seeded.

    Raises `InputError` for an unknown task, and where none of its texts can be had.
    """
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
    task, rng = TASKS[name], np.random.default_rng(seed)
    documents = [document for kind in task.kinds for text in load_texts(kind, "test") for document in text.documents]
    found = list(task.items(documents, rng))
    if not found:
        raise InputError(f"the texts of the task {name!r} give no item: {', '.join(task.kinds)}")
    return found[:count]
