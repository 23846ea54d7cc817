"""Calibration text that a model writes itself: sampled, kept, mixed with other text, and told by the record."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import spec_of
from helpers import filled_decoder, letter_tokenizer, word_tokenizer
from tokenizers import processors

from sentinel.adapt.pruning.prune import PruningSettings
from sentinel.api.changing import prune, quantize
from sentinel.api.model import Model
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.folder import read_record
from sentinel.formats.packages import kept_texts
from sentinel.formats.sources import LoadedModel, load
from sentinel.infer import own_text as module
from sentinel.infer.calibration_text import calibration_windows, split_own
from sentinel.infer.opening import make_engine
from sentinel.infer.own_text import Openings, openings_of, own_text, write_documents
from sentinel.infer.sampling import SamplingSettings, draw_nucleus, token_probabilities
from sentinel.infer.training_text import training_windows
from sentinel.models.record import Pruned, Record
from sentinel.models.tokenizer import TextTokenizer

ANY = Openings((), tuple(range(97)), ())
CHAT = "{% for m in messages %}{% if m.role == 'user' %}a b {{ m.content }} c d{% endif %}{% endfor %}"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Texts are kept in a folder of the test, and compiled kernels where they always are."""
    monkeypatch.setattr(module, "place_of", lambda name, last: tmp_path / "cache" / name)
    return tmp_path / "cache" / "own-texts"


@pytest.fixture
def bare() -> LoadedModel:
    """A model without tokenizer."""
    return LoadedModel("bare", filled_decoder(spec_of("llama-grouped")), None, Record())


@pytest.fixture
def sampled(monkeypatch) -> list[int]:
    """The seeds that text was really sampled with."""
    seeds: list[int] = []
    real = module.write_documents

    def counted(engine, openings, n_token, length, seed, report):
        seeds.append(seed)
        return real(engine, openings, n_token, length, seed, report)

    monkeypatch.setattr(module, "write_documents", counted)
    return seeds


def test_the_nucleus_is_drawn_as_its_probabilities_say():
    logits = np.random.default_rng(0).normal(0, 3, 500).astype(np.float32)
    logits[100:110] = logits[100]  # as likely as each other
    stream, draws = np.random.default_rng(1), 20_000
    for top_p in (0.9, 0.5):
        expected = token_probabilities(logits, SamplingSettings(temperature=1.0, top_p=top_p))
        found = np.bincount([draw_nucleus(logits, top_p, stream) for _ in range(draws)], minlength=500)
        assert not found[expected == 0].any()
        assert (np.abs(found - draws * expected) < 5 * np.sqrt(draws * expected) + 1).all()
    assert {draw_nucleus(logits, 1e-6, stream) for _ in range(50)} == {int(logits.argmax())}


def test_a_seed_gives_one_text_and_another_seed_another(bare):
    engine = make_engine(bare.decoder, 1)
    first, again, other = (write_documents(engine, ANY, 400, 32, seed) for seed in (3, 3, 4))
    assert first == again != other
    assert {len(document) for document in first} == {32} and sum(map(len, first)) == 416
    assert len({tuple(document) for document in first}) == len(first)


def test_a_document_does_not_depend_on_those_beside_it(monkeypatch, bare):
    engine = make_engine(bare.decoder, 1)
    together = write_documents(engine, ANY, 320, 32, 0)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert write_documents(engine, ANY, 320, 32, 0) == together


def test_short_documents_end_and_all_that_began_are_written_out(bare):
    openings = Openings((5,), (5,), ends=tuple(range(0, 97, 9)))
    documents = write_documents(make_engine(bare.decoder, 1), openings, 500, 40, 0)
    assert 500 <= sum(map(len, documents)) <= 540
    assert all(document[0] == 5 for document in documents)
    for document in documents:
        assert not set(document[:-1]) & set(openings.ends)
        assert len(document) == 40 or document[-1] in openings.ends
    assert len({len(document) for document in documents}) > 3


def test_the_template_opens_chats_and_answers_the_user(bare):
    asked, answered = (1, 2), (9, 3, 4)
    openings = Openings((), tuple(range(97)), (9, 18, 27, 36, 45, 54, 63, 72), asked, answered)
    documents = write_documents(make_engine(bare.decoder, 1), openings, 2000, 60, 0)
    chats = [document for document in documents if tuple(document[:2]) == asked]
    assert len(documents) // 4 <= len(chats) < len(documents) // 2
    both = [chat for chat in chats if "9, 3, 4" in str(chat)]
    assert both  # the answer's opening stands where the user's turn ended, and once
    assert all(str(chat).count("9, 3, 4") == 1 and sum(token in openings.ends for token in chat) <= 2 for chat in both)


def test_openings_of_tokenizers():
    assert openings_of(97, None) == Openings((), tuple(range(97)), ())
    letters = letter_tokenizer()
    plain = openings_of(17, letters)
    assert plain.before == () and not set(plain.first) & set(letters.eos_ids) and plain.asked == ()
    begun = word_tokenizer("a", "b", "c", "d", special="<s>")
    begun.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    chat = TextTokenizer(begun, (1,), settings={"chat_template": CHAT})
    found = openings_of(begun.get_vocab_size(), chat)
    assert found.before == (1,)
    ids = [begun.token_to_id(letter) for letter in "abcd"]
    assert found.asked == tuple(ids[:2]) and found.answered == tuple(ids[2:])
    refusing = TextTokenizer(begun, (1,), settings={"chat_template": "{{ raise_exception('no') }}"})
    assert openings_of(begun.get_vocab_size(), refusing).asked == ()
    assert max(openings_of(3, chat).first) < 3 and openings_of(3, chat).asked == ()  # ids that the model does not have


def test_what_was_written_is_kept_by_weights_and_settings(bare, sampled, cache):
    first = own_text(bare, 200, 32, seed=1)
    assert own_text(bare, 200, 32, seed=1) == first and sampled == [1]
    assert own_text(bare, 200, 32, seed=2).documents != first.documents and sampled == [1, 2]
    own_text(bare, 300, 32, seed=1)
    other = LoadedModel("bare", filled_decoder(bare.spec, seed=9), None, Record())
    assert own_text(other, 200, 32, seed=1).documents != first.documents and len(sampled) == 4
    files = sorted(cache.glob("*.json"))
    assert len(files) == 4 == len(list(cache.iterdir()))
    for file in files:
        file.write_text(file.read_text()[:-40])
    assert own_text(bare, 200, 32, seed=1) == first and len(sampled) == 5  # a damaged one is written anew


def test_an_interrupted_sampling_leaves_nothing(monkeypatch, bare, cache, sampled):
    with monkeypatch.context() as patch:
        steps = iter(range(10))

        def interrupted(*_):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return 5

        patch.setattr(module, "draw_nucleus", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own_text(bare, 200, 32)
    assert not cache.exists()
    engine = make_engine(bare.decoder, 1)
    monkeypatch.setattr(module, "draw_nucleus", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_documents(engine, ANY, 200, 32, 0)
    assert not engine._open  # every sequence was given back


def test_a_model_that_predicts_nan_is_refused(bare, cache):
    with torch.no_grad():
        bare.decoder.final_norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        own_text(bare, 64, 32)
    assert not cache.exists()


def test_self_is_mixed_with_other_text(worded, letters):
    assert (
        split_own("self") == (True, "") and split_own("a, self,b") == (True, "a,b") and split_own("a") == (False, "a")
    )
    loaded, file = load(worded), letters["calibration"]
    own, alone = calibration_windows(loaded, "self", 512, length=32), calibration_windows(loaded, file, 512, length=32)
    mixed = calibration_windows(loaded, f"self,{file}", 512, length=32)
    assert own.tokens.shape == alone.tokens.shape == mixed.tokens.shape == (16, 32)
    assert not alone.own_text and own.own_text["tokens"] == 512 and mixed.own_text["tokens"] == 256
    users = Counter(tuple(row) for row in alone.tokens.tolist())
    assert all(users[tuple(row)] for row in mixed.tokens[1::2].tolist())  # the texts take turns
    assert not any(users[tuple(row)] for row in mixed.tokens[::2].tolist())
    assert set(mixed.fingerprints) > set(alone.fingerprints)


def test_models_without_a_tokenizer_are_calibrated_on_their_own_text(bare, sampled):
    made = prune(Model(bare), heads=0.5, expand_kv=True, settings=PruningSettings("fisher", tokens=512))
    step = made.record.steps[-1]
    assert isinstance(step, Pruned) and step.texts == "self" and step.documents and sampled == [0]
    assert quantize(Model(bare), "int4", calibration_tokens=256).record.steps[-1].texts == "self"
    with pytest.raises(InputError, match="no tokenizer"):
        quantize(Model(bare), "int4", calibration="built-in")


def test_the_record_says_that_the_text_is_the_models_own(worded, letters, tmp_path, sampled, capsys):
    out = str(tmp_path / "out")
    base = ["prune", worded, "--criterion", "fisher", "--heads", "0.5", "--expand-kv", "--calibration-tokens", "512"]
    assert main([*base, "--text", letters["test"], "--eval-tokens", "64", "-o", out]) == 0
    record = read_record(tmp_path / "out")
    (step,) = record.steps
    assert isinstance(step, Pruned) and step.texts == "self" and sampled == [0]
    said = step.own_text
    assert said["seed"] == 0 and said["top_p"] == 0.98 and said["tokens"] == 512 and len(said["fingerprint"]) == 16
    assert said["engine"].startswith("level 3") and "written by" in step.describe()
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    # A text of the user's is one that the model has not seen.
    assert main(["evaluate", out, "--text", letters["calibration"], "--max-tokens", "64"]) == 0
    assert main([*base, "--text", letters["test"], "--eval-tokens", "64", "-o", f"{out}2"]) == 0 and sampled == [0]


def test_the_cache_lists_and_removes_texts(monkeypatch, tmp_path, capsys, bare):
    monkeypatch.setenv("SENTINEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "make_engine", lambda decoder, level: make_engine(decoder, 1))  # compiles nothing
    own_text(bare, 64, 32)
    assert [what for what, _ in kept_texts()] == ["text that bare wrote"]
    assert main(["cache", "list"]) == 0 and "text that bare wrote" in " ".join(capsys.readouterr().out.split())
    assert main(["cache", "clear"]) == 0 and len(list(kept_texts())) == 1  # it takes long to make again
    assert main(["cache", "clear", "--all"]) == 0 and not list(kept_texts())


def test_a_student_learns_what_its_teacher_writes_and_is_judged_by_other_documents(bare):
    teacher = LoadedModel("teacher", filled_decoder(spec_of("llama-grouped")), None, Record())
    train, judges = training_windows((bare, teacher), "self", None, 96, 20, 16, 0)
    assert train.tokens.shape == (6, 16) and judges.tokens.shape == (1, 16)
    assert not set(train.fingerprints) & set(judges.fingerprints)
    assert train.own_text["model"] == "teacher" and train.own_text["seed"] == 1


def test_what_is_held_out_of_a_mixture_is_of_all_its_texts(letters, worded):
    loaded = load(worded)
    train, judges = training_windows((loaded,), f"self,{letters['calibration']}", None, 256, 64, 16, 0)
    of_file, held_of_file = training_windows((loaded,), letters["calibration"], None, 128, 32, 16, 0)
    assert len(train.tokens) == 16 and len(judges.tokens) == 4
    assert torch.equal(train.tokens[8:], of_file.tokens) and torch.equal(judges.tokens[2:], held_of_file.tokens)


def test_a_text_that_is_held_out_takes_the_place_of_what_the_teacher_wrote(letters, worded):
    loaded = load(worded)
    train, judges = training_windows((loaded,), "self", letters["test"], 128, 64, 16, 0)
    _, alone = training_windows((loaded,), letters["calibration"], letters["test"], 128, 64, 16, 0)
    assert len(train.tokens) == 8 and torch.equal(judges.tokens, alone.tokens)
