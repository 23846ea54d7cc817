"""Tasks that are made of packaged text: right items, chance, standard error, the same answers in the harness."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import letter_tokenizer

import sentinel
from sentinel.adapt.text import choices
from sentinel.adapt.text.choices import TASKS, Item, task_items
from sentinel.adapt.text.corpora import Document, Text
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.measure.results import ResultSet
from sentinel.measure.zero_shot import chosen

PASSAGE = (
    "Some words were lost in the old house where nobody knew of them any more, and where all of those who came there much "
    "later on found the words."
)
SENTENCES = "The cats are here. This house is old. Most books in the house were sold. The size of the files has grown."
GLOSSES = "\n".join(f'{word}: what {word[0]} stands for; "an example"' for word in ("apple", "berry", "cherry", "date"))


@pytest.fixture
def packaged(monkeypatch):
    """Texts of every kind, in place of the packages'."""
    texts = {"prose": PASSAGE, "manual": SENTENCES, "dictionary": GLOSSES}

    def load(name: str, split: str) -> list[Text]:
        return [Text(name, (Document("noun-0", texts.get(name, "-")),))]

    monkeypatch.setattr(choices, "load_texts", load)


def test_items_are_what_the_texts_hold(packaged):
    (item,) = task_items("last-word", 9)
    assert item.choices[item.answer] == (PASSAGE[: -len(" words.")], " words") and len(item.choices) == 4
    assert len({word for _, word in item.choices}) == 4
    found = {item.choices[item.answer][0]: [word for _, word in item.choices] for item in task_items("agreement", 9)}
    verbs = {"The cats": "are", "This house": "is", "Most books in the house": "were", "The size of the files": "has"}
    assert set(found) == set(verbs)
    for item in task_items("agreement", 9):
        context, verb = item.choices[item.answer]
        assert verb.strip() == verbs[context] and item.choices[1 - item.answer][1] != verb
    definitions = task_items("definition", 9)
    assert len(definitions) == 4 and definitions == task_items("definition", 9)
    for item in definitions:
        word = item.choices[item.answer][0].removesuffix(":")
        assert {meaning for _, meaning in item.choices} == {f" what {word[0]} stands for"}
    with pytest.raises(InputError, match="there is no task 'x'; the tasks are last-word, agreement, definition"):
        task_items("x", 1)


class Likes:
    """A scorer that gives one token the most."""

    spec = type("Spec", (), {"max_seq_len": 8})()

    def __init__(self, token: int) -> None:
        self.token, self.calls = token, 0

    def score(self, tokens, last=None):
        self.calls += 1
        rows = np.zeros((last, 17), np.float32)
        rows[:, self.token] = 5.0
        return rows


def test_the_likeliest_continuation_is_the_choice_and_shared_contexts_are_read_once():
    tokenizer = letter_tokenizer()
    item = Item((("a b", " c"), ("a b", " d"), ("a b", " e")), 1)
    scorer = Likes(tokenizer.encode("d")[0])
    assert chosen(scorer, tokenizer, item) == 1 and scorer.calls == 1
    contexts = Item((("a", " d"), ("b", " d")), 0)
    assert chosen(scorer, tokenizer, contexts) == 0 and scorer.calls == 3


def test_tasks_from_the_command_line_and_from_python(monkeypatch, worded, tmp_path, capsys):
    items = [Item((("a b", f" {c}"), ("a b", " d")), 0) for c in "cefghijklm"]
    for module in ("adapt.text.choices", "measure.zero_shot"):
        monkeypatch.setattr(f"sentinel.{module}.task_items", lambda name, count, seed=0: items)
    file = tmp_path / "tasks.json"
    assert main(["evaluate", worded, "--tasks", "agreement,definition", "--json", str(file)]) == 0
    rows = ResultSet.read(file).results
    assert [(row.text, row.items, row.chance) for row in rows] == [("agreement", 10, 0.5), ("definition", 10, 0.25)]
    assert rows[0].accuracy == sentinel.evaluate_tasks(worded, ["agreement"])[0].accuracy
    share = rows[0].accuracy
    assert rows[0].accuracy_stderr == (pytest.approx(math.sqrt(share * (1 - share) / 9)) if 0 < share < 1 else None)
    assert "chance" in capsys.readouterr().out
    assert main(["evaluate", worded, "--tasks", "agreement", "--teacher", worded]) == 2
    monkeypatch.undo()
    assert main(["evaluate", worded, "--tasks", "nothing"]) == 2
    assert "the tasks are last-word" in capsys.readouterr().err


def test_the_harness_finds_the_tasks_and_agrees(packaged, worded):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from sentinel.commands.lm_eval import TASKS as FOLDER
    from sentinel.measure.lm_eval_model import SentinelLM

    names = [f"sentinel_{name.replace('-', '_')}" for name in TASKS]
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=SentinelLM(worded), tasks=names, task_manager=manager, bootstrap_iters=0, verbosity="ERROR"
    )
    ours = sentinel.evaluate_tasks(worded)
    assert [found["results"][name]["acc,none"] for name in names] == pytest.approx([row.accuracy for row in ours])
