"""Texts are read whole, packed into windows, and refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import spec_of
from helpers import (
    byte_tokenizer,
    character_tokenizer,
    filled_decoder,
    letter_tokenizer,
    text_of,
    word_tokenizer,
)
from tokenizers import processors

from sentinel.adapt.text.corpora import BUILT_IN, Document, Text, load_texts, sample_windows
from sentinel.adapt.text.judges import JUDGES, JudgeKind
from sentinel.adapt.text.kinds import Seen, seen_together
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.measure.evaluation import geometric_mean
from sentinel.measure.judge import Judge
from sentinel.measure.results import ResultSet
from sentinel.models.record import Quantised, Record, Recovered, Step
from sentinel.models.tokenizer import TextTokenizer


def test_short_documents_are_packed_with_the_end_token_between():
    documents = [f"{chr(97 + n % 26)}" * 510 for n in range(128)]
    texts = [Text("t", tuple(Document(str(n), f"{d}{n:03}"[-510:]) for n, d in enumerate(documents)))]
    found = sample_windows(texts, byte_tokenizer(), 127 * 512, 512)
    assert found.tokens.shape == (127, 512)
    assert len(found.fingerprints) == 128  # every document is in one of them
    ends = torch.nonzero(found.tokens.flatten() == 0).flatten()
    assert torch.equal(ends, torch.arange(510, 127 * 512, 511))
    again = sample_windows(texts, byte_tokenizer(), 127 * 512, 512)
    assert torch.equal(found.tokens, again.tokens) and found.fingerprints == again.fingerprints
    assert not torch.equal(found.tokens, sample_windows(texts, byte_tokenizer(), 127 * 512, 512, seed=1).tokens)
    with pytest.raises(InputError, match="128 windows of 512 tokens are needed and it gives 127"):
        sample_windows(texts, byte_tokenizer(), 128 * 512, 512)


def test_packed_windows_name_just_the_documents_that_they_hold():
    texts = [text_of(*(chr(97 + n) * 5 for n in range(26)))]
    found = sample_windows(texts, byte_tokenizer(), 24, 12)
    letters = {chr(97 + n): Document("", chr(97 + n) * 5).fingerprint for n in range(26)}
    held = byte_tokenizer().decode(found.tokens.flatten().tolist())
    assert set(found.fingerprints) == {letters[c] for c in held}


def test_packing_without_an_end_token_and_with_one_that_the_tokenizer_adds():
    texts = [text_of(*("abcdefg"[n:] for n in range(7)))]
    found = sample_windows(texts, character_tokenizer(), 28, 4)
    assert found.tokens.shape == (7, 4)  # 28 letters, nothing between
    ended = word_tokenizer("x", special="<e>")
    ended.post_processor = processors.TemplateProcessing(single="$A <e>", special_tokens=[("<e>", 1)])
    found = sample_windows([text_of("x x", "x x ")], TextTokenizer(ended, (1,)), 6, 6)
    assert found.tokens.tolist() == [[2, 2, 1, 2, 2, 1]]


def test_long_documents_give_all_they_have():
    """One document holds nearly all the text, and what is left over after whole windows is used when it is needed."""
    texts = [text_of("a" * 1000, "b" * 17, "c" * 23)]
    found = sample_windows(texts, byte_tokenizer(), 1040, 10)
    assert found.tokens.shape == (104, 10) and len(found.fingerprints) == 3
    with pytest.raises(InputError, match="too short"):
        sample_windows(texts, byte_tokenizer(), 1050, 10)


def test_documents_of_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\n".encode())
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.jsonl").write_text('{"text": "two \\u2028 lines"}\n\n{"text": "three", "id": 3}\n{"text": ""}\n')
    (found,) = load_texts(str(tmp_path), "train")
    assert [(d.name, d.text) for d in found.documents] == [
        ("a.txt", "one\n"),
        ("c.jsonl:1", "two \u2028 lines"),
        ("c.jsonl:3", "three"),
    ]
    assert found.documents[0].fingerprint == Document("", "one").fingerprint
    assert [d.text for d in load_texts(str(tmp_path / "c.jsonl"), "train")[0].documents][1] == "three"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t", "is empty"),
        ("mark.txt", b"\xef\xbb\xbf", "is empty"),
        ("latin.txt", "café".encode("latin-1"), "UTF-8"),
        ("wide.txt", "words".encode("utf-16"), "UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("other.jsonl", b'{"content": "a"}\n', "line 1 holds no document"),
        ("list.jsonl", b'["a"]\n', "line 1 holds no document"),
        ("half.jsonl", b'{"text": "\\ud83d"}\n', "line 1 holds no document"),
        ("nothing.jsonl", b"\n", "is empty"),
    ],
)
def test_files_that_hold_no_text_are_refused_by_name(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        load_texts(str(tmp_path / name), "train")
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.fixture
def kinds(monkeypatch, tmp_path):
    """Two kinds of text to judge by, and one that can't be had."""

    def kind(letters):
        def documents(scratch):
            assert scratch.is_dir()
            return ((f"d{number}", " ".join(letters[number:] * 4)) for number in range(len(letters)))

        return JudgeKind("letters", "here", "none", documents)

    def missing(scratch):
        raise InputError("not here")

    found = {"early": kind("abcdefgh"), "late": kind("ijklmnop"), "none": JudgeKind("", "", "", missing)}
    found["empty"] = JudgeKind("", "a package", "", lambda scratch: iter([("d", " ")]))
    monkeypatch.setattr("sentinel.adapt.text.corpora.JUDGES", found)
    monkeypatch.setattr("sentinel.adapt.text.judges.JUDGES", found)
    monkeypatch.setattr("sentinel.adapt.text.corpora.place_of", lambda name, last: tmp_path / "cache" / name)
    return found


def test_kinds_to_judge_by_are_kept_and_nothing_learns_from_them(kinds, capsys, monkeypatch):
    texts = load_texts("judges", "test")
    assert [(text.label, len(text.documents)) for text in texts] == [("early", 8), ("late", 8)]
    said = capsys.readouterr().err
    assert "not here" in said and "not where it was in a package" in said
    monkeypatch.setitem(kinds, "late", kinds["none"])  # what is kept is not fetched again
    assert load_texts("late", "test")[0].documents == texts[1].documents
    for names in ("early", "judges", "late:train"):
        with pytest.raises(InputError, match="kept to judge by alone"):
            load_texts(names, "train")
    with pytest.raises(InputError, match="kept to judge by alone"):
        load_texts("early:valid", "test")


def test_kinds_are_judged_each_alone_with_their_geometric_mean(kinds, worded, elastic, tmp_path, capsys):
    file = tmp_path / "kinds.json"
    half = ["--heads", "0.5", "--neurons", "0.5", "--teacher", worded, "--context", "16", "--json", str(file)]
    assert main(["evaluate", elastic, "--text", "judges", *half]) == 0
    rows = ResultSet.read(file).results
    assert [row.text for row in rows] == ["early", "late"]
    for row in rows:
        assert main(["evaluate", worded, "--text", row.text, "--context", "16", "--json", str(file)]) == 0
        (dense,) = ResultSet.read(file).results
        assert row.perplexity_ratio == pytest.approx(row.perplexity / dense.perplexity, rel=1e-5)
    capsys.readouterr()
    assert main(["evaluate", elastic, "--text", "judges", *half]) == 0
    said = " ".join(capsys.readouterr().out.split())
    mean = (rows[0].perplexity_ratio * rows[1].perplexity_ratio) ** 0.5
    assert geometric_mean([row.perplexity_ratio for row in rows]) == pytest.approx(mean)
    assert "geometric mean" in said and f"{mean:.3f}x" in said
    assert geometric_mean([1.0, None]) is None and geometric_mean([]) is None


def test_pruning_is_told_by_kind(kinds, worded, tmp_path, capsys):
    random = ["--criterion", "random", "--no-compensate", "--expand-kv", "--elastic", "0.3,0.5"]
    assert main(["prune", worded, *random, "--text", "judges", "--eval-tokens", "64", "-o", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {
        line.split()[0]: re.findall(r"([\d.]+)x", line)
        for line in lines
        if re.match("early|late|geometric", line.strip())
    }
    assert [len(ratios) for ratios in found.values()] == [2, 2, 2]
    for early, late, mean in zip(*found.values(), strict=True):
        assert float(mean) == pytest.approx((float(early) * float(late)) ** 0.5, abs=2e-3)


def test_every_kind_names_its_source_and_licence():
    assert len(JUDGES) >= 4 and not set(JUDGES) & set(BUILT_IN)
    assert all(kind.what and kind.source and kind.licence for kind in JUDGES.values())
    documents = list(JUDGES["code"].documents(Path()))  # of this Python: nothing is fetched
    assert len(documents) > 20 and sum("\ndef " in text or "\nclass " in text for _, text in documents) > 20


def test_seen_kinds_follow_from_the_record(kinds, tmp_path, monkeypatch):
    corpora = {"alpha": lambda scratch: iter([Document(f"d{n}", f"alpha {n}") for n in range(99)])}
    for place in ("corpora", "kinds"):
        monkeypatch.setattr(f"sentinel.adapt.text.{place}.BUILT_IN", corpora)
    monkeypatch.setattr("sentinel.adapt.text.kinds.JUDGES", kinds)
    (tmp_path / "mine.txt").write_text("words of mine")
    judge, alpha, mine = (load_texts(name, "test")[0] for name in ("early", "alpha", str(tmp_path / "mine.txt")))
    train = load_texts("alpha", "train")[0]
    read = tuple(document.fingerprint for document in train.documents)

    def told(*steps: Step) -> list[bool | None]:
        seen = Seen.of(Record(steps))
        return [seen.kind_of(text) for text in (judge, alpha, mine)]

    assert told() == told(Quantised(source="m", precision="int4", texts="self", documents=("x",))) == [False] * 3
    pruned = Quantised(source="m", precision="int4", texts="self,built-in", documents=read)
    assert told(pruned) == [False, True, None]  # other documents of the same corpus; nobody knows of mine
    taught = Recovered(source="m", teacher="t", texts="elsewhere", others_seen=read[:1])
    assert told(taught) == [False, True, None]  # what a teacher had seen counts too
    assert told(Quantised(source="m", precision="int4", texts=mine.label)) == [False, False, True]
    assert seen_together([False, None]) is None and seen_together([None, True]) is True and not seen_together([False])


def test_a_judge_goes_by_the_kinds_that_were_not_seen():
    spec = spec_of("gpt2")
    dense, other = filled_decoder(spec), filled_decoder(spec, seed=5)
    texts = [Text(name, (Document(name, " ".join(name) * 40),)) for name in ("bead", "face")]
    judge = Judge(dense, letter_tokenizer(), texts, Record(), tokens_per_text=None, context=16)
    both, unseen = judge(other), judge(other, Seen(frozenset({"bead"}), frozenset({"x"})))
    each = both["by_kind"]
    assert both["perplexity_ratio"] == pytest.approx(geometric_mean([one["perplexity_ratio"] for one in each.values()]))
    assert unseen["perplexity_ratio"] == each["face"]["perplexity_ratio"] and unseen["seen_kind"] is None
    assert unseen["by_kind"]["bead"]["seen_kind"] is True
    assert judge(other, Seen(frozenset({"bead", "face"})))["seen_kind"] is True
