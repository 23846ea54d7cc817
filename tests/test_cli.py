"""The command line as a user meets it: results, and one clear sentence for bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import spec_of
from helpers import filled_decoder, refused
from safetensors.torch import load_file, save_file

from sentinel.cli import COMMANDS, main
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.packages import gpt2_tokenizer_folder
from sentinel.formats.sources import KNOWN_SHAPES, random_decoder
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.tokenizer import TextTokenizer

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A tiny checkpoint without a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(filled_decoder(spec_of("gpt2")), folder, None, Record())
    return str(folder)


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sentinel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=OFFLINE, timeout=300, **options)


def test_help_imports_nothing_heavy():
    code = "import sys; from sentinel.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'transformers', 'rich', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert COMMANDS[command].split()[0] in capsys.readouterr().out.lower()


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
        (["generate", "WORDS", "hello", "--heads", "0.5"], "no pruning levels"),
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
def test_weights_that_are_not_finite_are_named(value, worded, tmp_path, capsys):
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
        ["evaluate", str(bad)],
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
    assert "gpt2, llama" in refused(capsys, "info", str(tmp_path / "mamba"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    assert "GGUF" in refused(capsys, "info", str(tmp_path / "model.gguf"))
    (tmp_path / "notes.txt").write_text("x")
    assert "not a .gguf file" in refused(capsys, "info", str(tmp_path / "notes.txt"))


def test_hub_out_of_reach_is_said():
    done = run("info", "somebody/some-model")
    assert done.returncode == 2
    assert "hub can't be reached" in done.stderr and done.stderr.count("\n") == 1


def test_info_writes_json(tiny, tmp_path, capsys):
    assert main(["info", tiny, "--json", str(tmp_path / "i.json")]) == 0
    assert json.loads((tmp_path / "i.json").read_text())["parameters"] == spec_of("gpt2").parameter_count()
    assert f"{spec_of('gpt2').parameter_count():,}" in capsys.readouterr().out


def test_bench_writes_the_promised_fields(tiny, tmp_path, capsys):
    out = tmp_path / "b.json"
    assert (
        main(
            [
                "bench",
                "decode",
                tiny,
                "--prompt-tokens",
                "8",
                "--new-tokens",
                "4",
                "--rounds",
                "2",
                "--json",
                str(out),
                "--precision",
                "int8",
            ]
        )
        == 0
    )
    data = json.loads(out.read_text())
    assert {r["engine"] for r in data["results"]} == {"hf-generate", "level 0", "level 1", "level 2", "level 3 int8"}
    for result in data["results"]:
        assert result["same_tokens_as_reference"] is True or result["level"] == 3
        assert result["speedup_over"] == "hf-generate" and len(result["samples"]) == 2
        for field in (
            "tokens_per_s",
            "ttft_ms",
            "tpot_ms",
            "peak_memory_mb",
            "bandwidth_gb_s",
            "weight_bytes_per_token",
        ):
            assert result[field] > 0, field
    assert "level 1" in capsys.readouterr().out
    sizes = ["--lengths", "8,16", "--heads", "0", "--rounds", "2"]
    assert main(["bench", "attention", tiny, *sizes, "--json", str(out)]) == 0
    assert len(json.loads(out.read_text())["results"]) == 8
    assert main(["report", "--from", str(out), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").stat().st_size > 100_000


def test_prune_evaluate_and_generate(worded, letters, tmp_path, capsys):
    texts = ["--calibration", letters["calibration"], "--calibration-tokens", "1024", "--text", letters["test"]]
    out = tmp_path / "pruned"
    assert main(["prune", worded, "-o", str(out), "--heads", "0.5", "--neurons", "0.25", *texts]) == 0
    assert "over dense" in capsys.readouterr().out
    before, after = (load_checkpoint(p).spec for p in (worded, out))
    assert after.n_head_total == before.n_head_total / 2
    size = out.joinpath("model.safetensors").stat().st_size
    assert size == pytest.approx(4 * after.parameter_count(gates=True), rel=0.03)
    assert (
        main(
            [
                "evaluate",
                str(out),
                "--text",
                letters["test"],
                "--context",
                "16",
                "--teacher",
                worded,
                "--json",
                str(tmp_path / "e.json"),
            ]
        )
        == 0
    )
    (result,) = json.loads((tmp_path / "e.json").read_text())["results"]
    for field in ("perplexity", "perplexity_stderr", "bits_per_byte", "kl", "top1_agreement", "distinct_2", "tokens"):
        assert result[field] > 0, field
    assert "KL" in capsys.readouterr().out
    seen = refused(capsys, "evaluate", str(out), "--text", letters["calibration"], "--context", "16")
    assert "was calibrated or trained on" in seen
    assert main(["generate", str(out), "a b c", "--max-new-tokens", "4", "-q"]) == 0


def test_elastic_model_from_the_command_line(worded, letters, tmp_path, capsys):
    texts = ["--calibration", letters["calibration"], "--calibration-tokens", "1024", "--text", letters["test"]]
    out = tmp_path / "elastic"
    levels = ["--elastic", "0.5,0.25", "--expand-kv", "--criterion", "fisher"]
    assert main(["prune", worded, "-o", str(out), *levels, *texts]) == 0
    table = capsys.readouterr().out
    assert "-25%" in table and "-50%" in table
    found = []
    for ratio in ("0", "0.25", "0.5"):
        assert main(["generate", str(out), "a b c", "--heads", ratio, "--max-new-tokens", "9", "-q"]) == 0
        found.append(capsys.readouterr().out)
    assert main(["generate", worded, "a b c", "--max-new-tokens", "9", "-q"]) == 0
    assert found[0] == capsys.readouterr().out
    assert "stored are" in refused(capsys, "generate", str(out), "a b c", "--heads", "0.3")


def test_targets_from_the_command_line(worded, letters, tmp_path, capsys):
    texts = ["--calibration", letters["calibration"], "--calibration-tokens", "1024", "--text", letters["test"]]
    megabytes = load_checkpoint(worded).spec.parameter_count() * 4 / 1e6
    limit = f"{0.8 * megabytes}"
    assert main(["prune", worded, "-o", str(tmp_path / "m"), "--max-memory", limit, *texts]) == 0
    assert load_checkpoint(tmp_path / "m").spec.parameter_count() * 4 / 1e6 <= 0.81 * megabytes
    capsys.readouterr()


def test_random_weights_are_pruned_but_never_judged(worded, letters, tmp_path, capsys):
    out = tmp_path / "r"
    arguments = ["prune", worded, "-o", str(out), "--heads", "0.5", "--random-weights", "3"]
    texts = ["--calibration", letters["calibration"], "--calibration-tokens", "1024"]
    assert main([*arguments, *texts]) == 0
    assert "random weights" in capsys.readouterr().out
    assert "random weights" in refused(capsys, "evaluate", str(out), "--text", letters["test"], "--context", "16")


def test_quantised_checkpoint_runs_without_torch(worded, tmp_path, capsys):
    out = tmp_path / "q"
    assert main(["quantize", worded, "-o", str(out), "--precision", "int8"]) == 0
    assert "int8" in capsys.readouterr().out
    code = (
        f"import sys; from sentinel.cli import main; main(['generate', {str(out)!r}, 'a b c', '--max-new-tokens', '4'])"
    )
    code += "; print([m for m in ('torch', 'transformers', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "level 3 int8" in done.stderr
    assert "only level 3" in refused(capsys, "generate", str(out), "a b c", "--level", "1")
    file = out / "model.native.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-200] + bytes(200), b"x" + whole[1:]):
        file.write_bytes(damaged)
        assert str(file) in refused(capsys, "generate", str(out), "a b c")


def test_importance_map(worded, letters, tmp_path, capsys):
    out, chart = tmp_path / "ranks.json", tmp_path / "map.svg"
    assert (
        main(
            [
                "importance",
                worded,
                "--criterion",
                "fisher",
                "--calibration",
                letters["calibration"],
                "--calibration-tokens",
                "1024",
                "--json",
                str(out),
                "--chart",
                str(chart),
            ]
        )
        == 0
    )
    ranks = json.loads(out.read_text())["removal_ranks"]
    assert sorted(rank for layer in ranks for rank in layer) == list(range(6))
    assert "layer  2" in capsys.readouterr().out
    assert chart.read_text().startswith("<svg")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupt_leaves_nothing_half_written(tiny, tmp_path):
    out = tmp_path / "report"
    command = [
        sys.executable,
        "-m",
        "sentinel",
        "report",
        tiny,
        "--prompt-tokens",
        "8",
        "--new-tokens",
        "40",
        "--rounds",
        "9999",
        "-o",
        str(out),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have made it ignored
    )
    assert process.stderr is not None
    while "Preparing level 3" not in process.stderr.readline():  # loading is over
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not out.exists() and list(tmp_path.iterdir()) == []


@pytest.mark.real_model
def test_generate_streams_text_and_tells_speed(tmp_path):
    spec = family_of("gpt2").spec_from_config({**KNOWN_SHAPES["gpt2"], "n_layer": 1, "n_embd": 24, "n_head": 2})
    save_checkpoint(
        random_decoder(spec, 0), tmp_path / "m", TextTokenizer.from_folder(gpt2_tokenizer_folder()), Record()
    )
    done = run("generate", str(tmp_path / "m"), "Hello world", "--max-new-tokens", "8", "--temperature", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    last = done.stderr.strip().splitlines()[-1]
    assert all(word in last for word in ("TTFT", "TPOT", "tokens/s", "peak memory")), last
    empty = run("generate", str(tmp_path / "m"), "")
    assert empty.returncode == 2 and "prompt is empty" in empty.stderr


@pytest.mark.real_model
def test_smollm2_knows_the_capital_of_france(capsys):
    asked = ["generate", "smollm2-135m", "The capital of France is", "--raw", "--max-new-tokens", "3", "-q"]
    assert main(asked) == 0
    assert "Paris" in capsys.readouterr().out


def test_a_quantised_model_is_judged_and_keeps_the_record_of_seen_text(worded, letters, tmp_path, capsys):
    pruned, quantised, result = tmp_path / "pruned", str(tmp_path / "quantised"), tmp_path / "result.json"
    command = ["prune", worded, "-o", str(pruned), "--heads", "0.34", "--criterion", "magnitude", "--eval-tokens", "50"]
    texts = ["--calibration", letters["calibration"], "--calibration-tokens", "512", "--text", letters["test"]]
    assert main([*command, *texts]) == 0
    assert main(["quantize", str(pruned), "--precision", "int8", "-o", quantised]) == 0
    found = {}
    for model in (str(pruned), quantised):
        judged = ["evaluate", model, "--text", letters["test"], "--context", "32", "--json", str(result)]
        assert main(judged) == 0
        (found[model],) = json.loads(result.read_text())["results"]
    capsys.readouterr()
    assert (found[quantised]["level"], found[quantised]["precision"]) == (3, "int8")
    assert found[quantised]["perplexity"] == pytest.approx(found[str(pruned)]["perplexity"], rel=0.02)
    assert "calibrated or trained on" in refused(capsys, "evaluate", quantised, "--text", letters["calibration"])
