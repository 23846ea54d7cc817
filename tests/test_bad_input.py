"""Bad input ends with one clear sentence, and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import refused
from safetensors.torch import load_file, save_file

from sentinel.cli import main
from sentinel.formats.checkpoint import load_checkpoint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["info", ""], "name is empty"),
        (["info", "/nowhere/at/all"], "does not exist"),
        (["info", "./nothing.gguf"], "does not exist"),
        (["info", "TINY", "--random-weights", "-1"], "at least 0"),
        (["info", "TINY", "--wrong"], "--wrong"),
        (["generate", "TINY", "hello"], "no tokenizer"),
        (["generate", "TINY", "hello", "--max-new-tokens", "0"], "at least 1"),
        (["generate", "TINY", "hello", "--max-new-tokens", "ten"], "not a whole number"),
        (["generate", "TINY", "hello", "--temperature", "nan"], "finite"),
        (["generate", "TINY", "hello", "--temperature", "-1"], "temperature"),
        (["generate", "TINY", "hello", "--top-p", "2"], "top-p"),
        (["generate", "TINY", "hello", "--level", "7"], "level 7 does not exist"),
        (["generate", "TINY", "hello", "--device", "abacus"], "abacus"),
        (["generate", "TINY", "hello", "--device", "meta"], "holds no values"),
        (["generate", "TINY", "hello", "--threads", "0"], "at least 1"),
        (["generate", "TINY", "hello", "--heads", "1.5"], "means 150 %"),
        (["generate", "WORDS", "hello", "--heads", "0.5"], "stores no widths"),
        (["integrate", "TINY", "-o", "NEW", "--rank", "0"], "not a rank"),
        (["integrate", "TINY", "-o", "NEW", "--configuration", "some"], "no-baseline"),
        (["prune", "WORDS", "-o", "NEW"], "one of"),
        (["prune", "WORDS", "-o", "NEW", "--heads", "2"], "means 200 %"),
        (["prune", "WORDS", "-o", "NEW", "--heads", "0.5", "--speedup", "2"], "one of"),
        (["prune", "WORDS", "-o", "FILE", "--heads", "0.5"], "is a file"),
        (["prune", "WORDS", "-o", "NEW", "--heads", "0.5", "--criterion", "luck"], "luck"),
        (
            ["prune", "WORDS", "-o", "NEW", "--heads", "0.5", "--text", "TEXT", "--calibration", "TEXT"],
            "was calibrated or trained on",
        ),
        (["prune", "WORDS", "-o", "NEW", "--heads", "0.5", "--text", "TEXT", "--calibration", "SHORT"], "too short"),
        (
            [
                "prune",
                "WORDS",
                "-o",
                "NEW",
                "--neurons",
                "0.5",
                "--criterion",
                "entropy",
                "--text",
                "TEXT",
                "--calibration",
                "OTHER",
                "--calibration-tokens",
                "64",
            ],
            "scores heads only",
        ),
        (
            [
                "prune",
                "WORDS",
                "-o",
                "NEW",
                "--speedup",
                "0.5",
                "--text",
                "TEXT",
                "--calibration",
                "OTHER",
                "--calibration-tokens",
                "64",
            ],
            "above 1",
        ),
        (
            [
                "prune",
                "WORDS",
                "-o",
                "NEW",
                "--max-memory",
                "0.001",
                "--text",
                "TEXT",
                "--calibration",
                "OTHER",
                "--calibration-tokens",
                "64",
                "--criterion",
                "magnitude",
                "--no-compensate",
            ],
            "out of reach",
        ),
        (["evaluate", "WORDS", "--text", "/nowhere.txt"], "no text file"),
        (["evaluate", "WORDS", "--text", "TEXT", "--context", "4096"], "context"),
        (["evaluate", "WORDS", "--text", "TEXT", "--teacher", "TINY", "--context", "16"], "same vocabulary"),
        (["evaluate", "TINY", "--text", "TEXT", "--random-weights", "0"], "random weights"),
        (["evaluate", "WORDS", "--text", "sotu:half"], "no split"),
        (["importance", "WORDS", "--chart", "x.png"], ".html or .svg"),
        (["importance", "WORDS", "--json", "FOLDER"], "is a folder"),
        (["importance", "WORDS", "--seed", "9" * 30], "too large"),
        (["importance", "TINY", "--random-weights", "9" * 30], "too large"),
        (["evaluate", "WORDS", "--text", "TEXT", "--json", "FOLDER"], "is a folder"),
        (["evaluate", "WORDS", "--text", "TEXT", "--json", ""], "is a folder"),
        (["evaluate", "WORDS", "--text", "TEXT", "--context", "16", "--teacher", ""], "name is empty"),
        (["evaluate", "WORDS", "--text", ""], "name of a text is empty"),
        (["prune", "WORDS", "-o", "NEW", "--heads", "0.5", "--text", "TEXT", "--calibration", ","], "text is empty"),
        (["prune", "WORDS", "-o", "WORDS", "--heads", "0.5"], "would be lost"),
        (["quantize", "WORDS", "-o", "WORDS"], "would be lost"),
        (["integrate", "TINY", "-o", "WORDS", "--baseline", "WORDS"], "would be lost"),
        (["recover", "TINY", "-o", "WORDS", "--teacher", "WORDS"], "would be lost"),
        (["adapt", "WORDS", "-o", "WORDS", "--budget", "0.5"], "would be lost"),
        (["adapt", "WORDS", "-o", "NEW", "--budget", "0.5", "--minutes", "0"], "minutes must be above 0"),
        (["bench", "decode", "TINY", "--json", "FOLDER"], "is a folder"),
        (["generate", "WORDS", "a", "--lookup", "--seed", "-1"], "at least 0"),
        (["info", "TINY", "--json", "FOLDER"], "is a folder"),
        (["bench", "speed"], "speed"),
        (["bench", "decode", "TINY", "--prompt-tokens", "60"], "context"),
        (["bench", "decode", "TINY", "--levels", "0,0"], "twice"),
        (["bench", "attention", "TINY", "--lengths", "32,64"], "context"),
        (["bench", "attention", "TINY", "--levels", "1"], "takes no --levels"),
        (["bench", "decode", "TINY", "--json", "/proc/none/x.json"], "/proc/none"),
        (["report", "TINY", "-o", "FILE"], "is a file"),
        (["report", "TINY", "--from", "/nowhere.json"], "can't be read"),
    ],
)
def test_bad_input_is_one_clear_sentence(arguments, said, tiny, worded, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    places = {
        "TINY": tiny,
        "WORDS": worded,
        "FILE": str(tmp_path / "file"),
        "NEW": str(tmp_path / "new"),
        "FOLDER": str(tmp_path),
    }
    for name, words in (("TEXT", "a b c d e f g h " * 40), ("OTHER", "h g f e d c b a " * 90), ("SHORT", "a b c")):
        (tmp_path / name).write_text(words)
        places[name] = str(tmp_path / name)
    assert said in refused(capsys, *(places.get(a, a) for a in arguments))
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value, worded, letters, tmp_path, capsys):
    bad = tmp_path / "bad"
    shutil.copytree(worded, bad)
    weights = load_file(bad / "model.safetensors")
    weights["layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    new = str(tmp_path / "new")
    for command in (
        ["prune", str(bad), "-o", new, "--heads", "0.5", "--criterion", "magnitude", "--no-compensate"],
        ["integrate", worded, "-o", new, "--baseline", str(bad)],
        ["recover", worded, "-o", new, "--teacher", str(bad)],
        ["evaluate", str(bad), "--text", letters["test"]],
    ):
        assert f"{bad}: tensor 'layers.1.mlp.up_proj.weight' holds NaN" in refused(capsys, *command)
    assert not Path(new).exists()


@pytest.mark.parametrize("record", ["yes", None, {"calibration_documents": 5}, {"calibration_documents": [1]}])
def test_a_damaged_record_of_seen_text_is_refused(record, worded, letters, tmp_path, capsys):
    bad = tmp_path / "bad"
    shutil.copytree(worded, bad)
    config = json.loads((bad / "config.json").read_text())
    del config["record"]  # as version 0.1 wrote it
    (bad / "config.json").write_text(json.dumps({**config, "pruning": record}))
    assert "record of pruning is damaged" in refused(capsys, "evaluate", str(bad), "--text", letters["test"])


def test_floors_are_kept_or_refused(worded, tmp_path, capsys):
    command = ["prune", worded, "-o", str(tmp_path / "new"), "--criterion", "magnitude", "--no-compensate"]
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h " * 40)
    command += ["--text", str(text)]
    for unit in ("heads", "neurons"):
        ratios = ["--heads", "0.5", "--neurons", "0.5", f"--floor-{unit}", "99"]
        assert f"50% of {unit} can't be removed" in refused(capsys, *command, *ratios)
    assert not (tmp_path / "new").exists()
    assert main([*command, "--heads", "0.5", "--floor-heads", "1"]) == 0
    assert all(layer.n_kv_head >= 1 for layer in load_checkpoint(tmp_path / "new").spec.layers)


def test_models_that_can_not_be_read_are_named(tiny, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(capsys, "info", str(tmp_path / "empty"))
    (tmp_path / "mamba").mkdir()
    (tmp_path / "mamba" / "config.json").write_text('{"model_type": "mamba"}')
    assert "supported families are gemma" in refused(capsys, "info", str(tmp_path / "mamba"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    assert "GGUF" in refused(capsys, "info", str(tmp_path / "model.gguf"))
    (tmp_path / "notes.txt").write_text("x")
    assert "not a .gguf file" in refused(capsys, "info", str(tmp_path / "notes.txt"))
