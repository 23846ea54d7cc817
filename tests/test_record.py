"""The record of how a model was made: it travels with the model, and every judge asks it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import spec_of
from helpers import LETTERS, filled_decoder, letter_tokenizer, refused

from sentinel.adapt.integration import integrate
from sentinel.adapt.pruning.compact import expand_kv, select
from sentinel.adapt.text.corpora import Document, Text, refuse_seen_text
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.folder import read_config, read_record
from sentinel.formats.hugging_face.model import SentinelForCausalLM
from sentinel.formats.sources import load
from sentinel.measure.judge import Judge
from sentinel.measure.runner import run_suites
from sentinel.models.earlier_record import UNNAMED, earlier_record
from sentinel.models.elastic import StoredWidth
from sentinel.models.record import KINDS, Adapted, Integrated, Pruned, Quantised, Record, Recovered
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

STEPS = (
    Pruned(
        source="m", criterion="fisher", heads=(0.3, 0.5), neurons=(0.0, 0.0), texts="t", documents=("a",), tokens=64,
        removal_ranks=((1, 0), (0, 1)), elastic=True,
    ),
    Recovered(
        source="p", teacher="m", documents=("b",), held_out=("c",), others_seen=("d",), settings={"steps": 3}, steps=3,
        divergence_before=1.0, divergence_after=0.5,
    ),
    Adapted(source="m", budget="0.5", cycles=2, documents=("e",), held_out=("f",)),
    Integrated(source="p", configuration="all", rank=None, baseline="m", others_seen=("g",)),
    Quantised(source="i", precision="int4", documents=("h",), tokens=128),
)  # fmt: skip
LOOSE = {
    "weights": "random",
    "pruning": {"source": "m", "criterion": "fisher", "heads": [0.5], "neurons": [0.0], "calibration_documents": ["a"]},
    "recovery": {"teacher": "m", "text": "t", "settings": {"steps": 3}, "steps": 3, "documents": ["b"]},
    "quantisation": {"calibration": "t", "calibration_tokens": 8, "calibration_documents": ["c"]},
    "configuration": "all",
    "source": "p",
    "baseline_source": "m",
}
MAGNITUDE = ("--heads", "0.5", "--criterion", "magnitude", "--no-compensate")


def texts_in(folder: Path, *names: str) -> list[str]:
    """Files of letters that share no document."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / f"{name}.txt").write_text(" ".join(rng.choice(list(LETTERS), 3000)))
    return [str(folder / f"{name}.txt") for name in names]


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def recovery(model: object, teacher: object, out: Path, text: str, held_out: str) -> list[object]:
    sizes = "--steps 2 --tokens 320 --held-out-tokens 64 --length 16 --batch 2 --evaluations 1".split()  # noqa: SIM905
    return ["recover", model, "--teacher", teacher, "-o", out, "--text", text, "--held-out", held_out, *sizes]


# --- the record itself -----------------------------------------------------------------------------------------------


def test_a_record_survives_json():
    record = Record(STEPS, "random")
    again = Record.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again == record and set(KINDS) == {step.kind for step in STEPS}
    assert Record.from_dict(Record().to_dict()) == Record()


@pytest.mark.parametrize(
    "step",
    [
        Pruned(source="m", criterion="fisher", heads=(0.5,), neurons=(0.0,), compensated=False, expanded_kv=False,
               elastic=False, tokens=0, removal_ranks=()),
        Integrated(source="m", configuration="skips", rank=None, baseline=None),
        Quantised(source="m", precision="int8", heads=0.0, neurons=0.0, tokens=0),
    ],
    ids=lambda step: step.kind,
)  # fmt: skip
def test_a_field_that_a_record_leaves_out_says_that_nothing_was_done(step):
    data = Record((step,)).to_dict()
    data["steps"] = [{name: value for name, value in data["steps"][0].items() if value not in (0, None, "", [], {})}]
    assert len(data["steps"][0]) < len(dataclasses.fields(step))
    assert Record.from_dict(data) == Record((step,))


def test_seen_documents_are_those_of_all_steps_and_of_the_models_they_took():
    record = Record()
    for step in STEPS:
        record = record.then(step)
    assert record.steps == STEPS
    assert record.seen_documents() == set("abcdefgh")
    assert record.learned_documents() == set("abdegh")  # c and f only said when to stop
    assert all("\n" not in step.describe() and step.source in step.describe() for step in STEPS)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.update(weights="mine"), "weights are 'mine'"),
        (lambda d: d.update(steps={}), "steps must be a list"),
        (lambda d: d.pop("steps"), "must hold version, weights and steps"),
        (lambda d: d["steps"].append("pruned"), "step 2 is no object"),
        (lambda d: d["steps"][0].update(kind="distilled"), "step 1 has kind 'distilled'"),
        (lambda d: d["steps"][0].update(kind=["pruned"]), "step 1 has kind"),
        (lambda d: d["steps"][0].update(colour="red"), "field colour is unknown"),
        (lambda d: d["steps"][0].pop("criterion"), "field criterion is missing"),
        (lambda d: d["steps"][0].update(criterion={}), "criterion is {}"),
        (lambda d: d["steps"][0].update(heads={"0.5": 1}), "heads is {"),
        (lambda d: d["steps"][0].update(documents="ab"), "documents is 'ab'"),
        (lambda d: d["steps"][0].update(documents=[1]), "documents is 1"),
        (lambda d: d["steps"][0].update(documents=None), "documents is None"),
        (lambda d: d["steps"][0].update(heads=[float("nan")]), "heads is nan"),
        (lambda d: d["steps"][0].update(compensated=1), "compensated is 1"),
        (lambda d: d["steps"][0].update(tokens=True), "tokens is True"),
    ],
)
def test_a_damaged_record_is_refused_in_one_sentence(change, word):
    data = json.loads(json.dumps(Record(STEPS[:1]).to_dict()))
    change(data)
    with pytest.raises(InputError) as found:
        Record.from_dict(data, "folder")
    assert str(found.value).startswith("folder: the record") and word in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("record", ["yes", None, [], {"version": 1}])
def test_a_folder_with_a_damaged_record_is_named(record, worded, letters, tmp_path, capsys):
    bad = tmp_path / "bad"
    shutil.copytree(worded, bad)
    (bad / "config.json").write_text(json.dumps({**read_config(bad), "record": record}))
    assert f"{bad}: the record" in refused(capsys, "evaluate", str(bad), "--text", letters["test"])


# --- checkpoints of version 0.1 --------------------------------------------------------------------------------------


def test_loose_fields_of_an_earlier_checkpoint_become_the_record(worded, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(worded, old)
    config = read_config(old)
    del config["record"]
    (old / "config.json").write_text(json.dumps({**config, **LOOSE}))
    record = load(str(old)).record
    assert [step.kind for step in record.steps] == ["pruned", "integrated", "recovered", "quantised"]
    assert record.seen_documents() == {"a", "b", "c"} and record.weights == "random"
    loaded = load(str(old))
    save_checkpoint(loaded.decoder, tmp_path / "new", loaded.tokenizer, loaded.record)
    assert not set(read_config(tmp_path / "new")) & set(LOOSE)
    assert read_record(tmp_path / "new") == record


@pytest.mark.parametrize("baseline", ["m", None])
def test_loose_fields_tell_every_step_as_it_was(baseline):
    config = {**LOOSE, "baseline_source": baseline, "precision": "int8"}
    assert earlier_record(config, "folder") == Record(
        (
            Pruned(source="m", criterion="fisher", heads=(0.5,),
                   neurons=(0.0,), documents=("a",)),
            Integrated(source="p", configuration="all", baseline=baseline),
            Recovered(source=UNNAMED, teacher="m", texts="t", settings={"steps": 3}, steps=3, documents=("b",)),
            Quantised(source="p", precision="int8", texts="t", tokens=8, documents=("c",)),
        ),
        "random",
    )  # fmt: skip


def test_a_folder_that_sentinel_did_not_write_has_no_steps(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "record": 1, "pruning": 2}))
    assert read_record(tmp_path) == Record()


# --- it travels ------------------------------------------------------------------------------------------------------


def test_every_command_passes_the_record_on(worded, tmp_path):
    a, b, c, d, e = texts_in(tmp_path, *"abcde")
    first, second, third, fourth, last = (tmp_path / str(n) for n in range(5))
    fisher = ("--criterion", "fisher", "--calibration-tokens", "512")
    run("prune", worded, "-o", first, "--heads", "0.5", *fisher, "--calibration", a, "--text", e)
    run(*recovery(first, worded, second, b, c))
    run("prune", second, "-o", third, "--neurons", "0.5", *fisher, "--calibration", d, "--text", e)
    run("integrate", third, "-o", fourth, "--rank", "2")
    run("quantize", fourth, "-o", last)
    record = read_record(last)
    kinds = ["pruned", "recovered", "pruned", "integrated", "quantised"]
    assert [step.kind for step in record.steps] == kinds
    assert [step.source for step in record.steps] == [Path(worded).name, "0", "1", "2", "3"]
    assert len(record.seen_documents()) == 4
    loaded = load(str(second))
    save_checkpoint(loaded.decoder, tmp_path / "copy", loaded.tokenizer, loaded.record)
    assert load(str(tmp_path / "copy")).record == loaded.record == Record(record.steps[:2])


def test_adapt_keeps_the_record_and_adds_to_it(worded, tmp_path):
    a, b, c = texts_in(tmp_path, *"abc")
    run(*recovery(worded, worded, tmp_path / "r", a, b))
    sizes = "--steps 2 --cycles 1 --tokens 1280 --calibration-tokens 640 --held-out-tokens 128".split()  # noqa: SIM905
    run("adapt", tmp_path / "r", "-o", tmp_path / "out", "--budget", "0.5", "--text", c, "--held-out", b, *sizes)
    recovered, adapted = read_record(tmp_path / "out").steps
    assert recovered == read_record(tmp_path / "r").steps[0]
    assert isinstance(adapted, Adapted) and (adapted.budget, adapted.cycles) == ("0.5", 1)
    assert len(read_record(tmp_path / "out").seen_documents()) == 3


def test_the_record_rides_in_a_hugging_face_config(worded, tmp_path):
    from transformers import AutoModelForCausalLM

    loaded, record = load(worded), Record(STEPS)
    save_checkpoint(loaded.decoder, tmp_path / "a", loaded.tokenizer, record)
    AutoModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert read_record(tmp_path / "b") == record
    model = SentinelForCausalLM.from_decoder(loaded.decoder, record)
    model.save_pretrained(tmp_path / "c")
    assert read_record(tmp_path / "c") == record


# --- every judge asks it ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(worded, tmp_path_factory) -> tuple[Path, list[str]]:
    """A model that was recovered on text a, with b to stop by; and texts a to d."""
    folder = tmp_path_factory.mktemp("learned")
    texts = texts_in(folder, *"abcd")
    run(*recovery(worded, worded, folder / "model", *texts[:2]))
    return folder / "model", texts


def test_commands_refuse_to_judge_by_seen_text(learned, worded, tmp_path, capsys):
    model, (a, b, c, d) = learned
    capsys.readouterr()
    out, small = tmp_path / "out", ("--calibration", c, "--calibration-tokens", "512")
    run("quantize", model, "-o", tmp_path / "q")
    capsys.readouterr()
    for command in (
        ("evaluate", model, "--text", a),
        ("evaluate", model, "--text", b),
        ("evaluate", tmp_path / "q", "--text", f"{c},{a}"),
        ("evaluate", worded, "--teacher", model, "--text", a),
        ("prune", model, "-o", out, *MAGNITUDE, "--text", a),
        ("bench", "quality", model, "--text", b, *small),
        ("bench", "integration", model, "--text", a, *small),
        ("report", model, "-o", out, "--quick", "--text", a, *small),
        ("adapt", model, "-o", out, "--budget", "0.5", "--text", c, "--steps", "1", "--compare-one-shot", "0",
         "--judge", a, "--held-out", d, "--held-out-tokens", "128", "--tokens", "1024", "--calibration-tokens", "512"),
        ("adapt", model, "-o", out, "--budget", "0.5", "--text", c, "--held-out", a),
        recovery(model, worded, out, c, a),
        recovery(worded, model, out, c, a),
    ):  # fmt: skip
        said = refused(capsys, *command)
        assert "was calibrated or trained on" in said, command
    assert not out.exists()
    run(*recovery(model, worded, out, c, b))  # what said when to stop may say so again


def test_a_sweep_names_the_model_that_has_seen_its_text(learned, tmp_path, capsys):
    model, (a, _, c, _) = learned
    arguments = ["sweep", "--models", model, "--criteria", "magnitude", "--heads", "0.5", "--workers", "1"]
    arguments += ["--calibration", c, "--calibration-tokens", "512", "--text", a, "-o", tmp_path / "s.json"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "was calibrated or trained on" in capsys.readouterr().err


def test_what_a_teacher_or_a_baseline_had_seen_counts(learned, worded, tmp_path, capsys):
    model, (a, b, c, d) = learned
    run(*recovery(worded, model, tmp_path / "taught", c, d))
    run("integrate", worded, "-o", tmp_path / "beside", "--baseline", model, "--rank", "2")
    for made in ("taught", "beside"):
        for text in (a, b):
            capsys.readouterr()
            assert "trained on" in refused(capsys, "evaluate", tmp_path / made, "--text", text)


def test_the_python_api_refuses_seen_text_too(worded):
    text = Text("t", (Document("d", " ".join(LETTERS * 4)),))
    record = Record(
        (Pruned(source="m", criterion="c", heads=(), neurons=(), documents=(text.documents[0].fingerprint,)),)
    )
    loaded = load(worded)
    with pytest.raises(InputError, match="d was calibrated"):
        refuse_seen_text(record, [text])
    with pytest.raises(InputError, match="d was calibrated"):
        Judge(loaded.decoder, letter_tokenizer(), [text], record, tokens_per_text=None)


def test_a_run_of_suites_asks_before_it_measures(tmp_path, monkeypatch):
    (file,) = texts_in(tmp_path, "a")
    from sentinel.adapt.text.corpora import load_texts
    from sentinel.measure.suites import Suite

    monkeypatch.setattr(Suite, "run", lambda *_: pytest.fail("it measured"))
    spec = ModelSpec(**{**vars(spec_of("gpt2")), "vocab_size": 17})
    seen = load_texts(file, "test")[0].documents[0].fingerprint
    record = Record((Quantised(source="m", precision="int4", documents=(seen,)),))
    save_checkpoint(filled_decoder(spec), tmp_path / "m", letter_tokenizer(), record)
    for suite in ("quality", "integration"):
        with pytest.raises(InputError, match="was calibrated or trained on"):
            run_suites(load(str(tmp_path / "m")), {"levels": {}, suite: {"text": file}}, source="m")


def test_a_decoder_carries_its_record_through_surgery_and_saving(worded, tmp_path):
    loaded = load(worded)
    record = loaded.record.then(STEPS[0])
    decoder = dataclasses.replace(loaded, record=record).decoder
    whole = Width.full(decoder.spec)
    elastic = select(decoder, whole.kept)
    narrow = Width((1,) * decoder.spec.n_layer, whole.neurons)
    elastic.store_widths([StoredWidth(0.5, 0.0, narrow, {})])
    changed = {
        "elastic": elastic,
        "expanded": expand_kv(decoder),
        "selected": select(decoder, whole.kept),
        "integrated": integrate(decoder, "no-baseline", rank=2),
        "narrowed": elastic.at_width(0.5, 0.0),
    }
    for name, made in changed.items():
        save_checkpoint(made, tmp_path / name)
        assert read_record(tmp_path / name) == record, name
    wrapped = SentinelForCausalLM.from_decoder(decoder)
    wrapped.save_pretrained(tmp_path / "wrapped")
    assert read_record(tmp_path / "wrapped") == record
    assert SentinelForCausalLM.from_pretrained(tmp_path / "wrapped").decoder.record == record
