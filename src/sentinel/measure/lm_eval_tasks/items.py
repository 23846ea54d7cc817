"""The project's zero-shot tasks as the harness reads them; the YAML files beside this one name its functions."""

from __future__ import annotations

import datasets  # pyright: ignore[reportMissingImports]

from sentinel.adapt.text.choices import Item, task_items

COUNT = 200  # as `sentinel evaluate --tasks` asks


def last_word(**_: object) -> dict[str, datasets.Dataset]:
    """Passages, and words to end them."""
    return _words("last-word")


def agreement(**_: object) -> dict[str, datasets.Dataset]:
    """Sentences up to a verb, and its two forms."""
    return _words("agreement")


def definition(**_: object) -> dict[str, datasets.Dataset]:
    """Words, and one definition for all of them."""
    return _documents(
        {"words": [context for context, _ in item.choices], "definition": item.choices[0][1], "answer": item.answer}
        for item in task_items("definition", COUNT)
    )


def _words(name: str) -> dict[str, datasets.Dataset]:
    return _documents(_word_choice(item) for item in task_items(name, COUNT))


def _word_choice(item: Item) -> dict[str, object]:
    return {"context": item.choices[0][0], "words": [word for _, word in item.choices], "answer": item.answer}


def _documents(rows: object) -> dict[str, datasets.Dataset]:
    return {"test": datasets.Dataset.from_list(list(rows))}  # pyright: ignore[reportArgumentType]
