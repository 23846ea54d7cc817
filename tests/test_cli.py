"""The command line as a user meets it: results, and one clear sentence for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import spec_of
from helpers import filled_decoder, refused

from sentinel.cli import COMMANDS, main
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.folder import read_record
from sentinel.formats.packages import gpt2_tokenizer_folder
from sentinel.formats.random_weights import random_decoder
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.models.families import family_of
from sentinel.models.record import Integrated, Pruned, Record
from sentinel.models.tokenizer import TextTokenizer

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


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


def test_integrate_from_the_command_line(tmp_path, capsys):
    source, out = str(tmp_path / "source"), str(tmp_path / "out")
    made = Record().then(Pruned(source="m", criterion="fisher", heads=(0.5,), neurons=(0.0,), documents=("a",)))
    save_checkpoint(filled_decoder(spec_of("gpt2")), source, None, made)
    assert main(["integrate", source, "-o", out, "--rank", "2"]) == 0
    said = capsys.readouterr().out
    spec = load_checkpoint(out).spec
    assert spec.integration is not None and spec.integration.rank == 2
    assert f"{spec.fusion_weights:,} new ones" in said and "frozen" in said
    record = read_record(tmp_path / "out")
    assert record.steps[0] == made.steps[0] and isinstance(record.steps[1], Integrated)
    assert record.steps[1].configuration == "all" and record.steps[1].others_seen == ("a",)
    assert main(["info", out, "--json", str(tmp_path / "info.json")]) == 0
    assert "U-Net skips and baseline integration" in capsys.readouterr().out
    assert json.loads((tmp_path / "info.json").read_text())["fusion_parameters"] == spec.fusion_weights
    options = ["--configuration", "no-unet", "--rank", "full", "--baseline", source]
    assert main(["integrate", source, "-o", out, "--force", *options]) == 0
    again = load_checkpoint(out).spec.integration
    assert again is not None and not again.skips and again.rank is None and again.baseline is not None
    assert main(["integrate", out, "-o", str(tmp_path / "plain"), "--configuration", "original"]) == 0
    assert "--level 0" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "plain").spec == spec_of("gpt2")
    for arguments, word in (
        ((source, "--configuration", "no-baseline", "--baseline", source), "leave out --baseline"),
        ((out,), "already"),
    ):
        assert main(["integrate", *arguments, "-o", str(tmp_path / "refused")]) == 2
        assert word in capsys.readouterr().err
        assert not (tmp_path / "refused").exists()
