"""Sweeps: what jobs compute, resuming, failures, processes and Ray."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import spec_of
from helpers import filled_decoder

from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.text.corpora import load_texts, sample_windows
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.sources import load
from sentinel.measure import sweep
from sentinel.measure.perplexity import evaluate
from sentinel.measure.results import ResultSet
from sentinel.measure.sweep import Job, Outcome, SweepFile, SweepSettings, plan_jobs, run_job
from sentinel.measure.sweep_backends import in_processes, on_ray
from sentinel.models.record import Record


@pytest.fixture
def settings(letters) -> SweepSettings:
    return SweepSettings(
        heads=(0.5,),
        neurons=(0.0, 0.25),
        expand_kv=True,
        calibration=letters["calibration"],
        calibration_tokens=512,
        text=letters["test"],
        eval_tokens=128,
        context=32,
    )


def arguments(letters, out, *more: str) -> list[str]:
    texts = ["--calibration", letters["calibration"], "--calibration-tokens", "512", "--text", letters["test"]]
    return ["sweep", "--heads", "0.34,0.67", "--eval-tokens", "128", "--context", "32", *texts, "-o", str(out), *more]


def numbers(rows) -> list[tuple]:
    """What tells a row, and its perplexity; threads differ, so that the last digits may."""
    found = [
        (
            r.model,
            r.criterion or "",
            r.seed or 0,
            r.heads_pruned,
            r.neurons_pruned,
            r.compensated,
            f"{r.perplexity:.4g}",
        )
        for r in rows
    ]
    return sorted(found, key=str)


def test_jobs_of_a_model_stand_together_and_each_is_there_once():
    jobs = plan_jobs(["a", "b", "a"], ["fisher", "random"], [0, 1])
    assert jobs[0] == Job("a") and len(jobs) == len(set(jobs)) == 2 * (1 + 4)
    assert [job.model for job in jobs] == ["a"] * 5 + ["b"] * 5
    with pytest.raises(InputError, match="luck"):
        plan_jobs(["a"], ["luck"], [0])


def test_levels_leave_out_the_dense_model():
    assert SweepSettings((0.0, 0.5), (0.0, 0.2)).levels == [(0.5, 0.0), (0.0, 0.2), (0.5, 0.2)]
    with pytest.raises(InputError, match="removes something"):
        SweepSettings((0.0,))
    with pytest.raises(InputError, match="between 0 and 1"):
        SweepSettings((1.5,))


def test_rows_are_what_prune_and_evaluate_say(worded, letters, settings):
    (dense,) = run_job(settings, Job(worded)).rows
    rows = run_job(settings, Job(worded, "magnitude", 3)).rows
    assert [(r.neurons_pruned, r.compensated) for r in rows] == [(0.0, False), (0.25, False), (0.0, True), (0.25, True)]
    assert dense.perplexity_ratio == 1 and dense.seed is None
    assert all(r.tokens_per_s is None and r.speedup is None and not r.samples for r in rows)
    loaded = load(worded)
    tokenizer = loaded.require_tokenizer()
    expanded = sweep.expand_kv(loaded.decoder)
    windows = sample_windows(load_texts(letters["calibration"], "train"), tokenizer, 512, 64, 3)
    pruner = Pruner(expanded, PruningSettings("magnitude", seed=3), windows)
    (pruned,) = pruner.apply([pruner.order(0.5, 0.25).plan(0.5, 0.25)])
    texts = load_texts(letters["test"], "test")
    for model, row in ((loaded.decoder, dense), (pruned, rows[3])):
        found = evaluate(model, tokenizer, texts, context=32, stride=31, max_tokens=128)
        assert row.perplexity == pytest.approx(found.perplexity, rel=1e-4)
        assert row.parameters == model.spec.parameter_count()
    assert rows[3].perplexity_ratio == pytest.approx(rows[3].perplexity / dense.perplexity, rel=1e-6)


def test_calibration_runs_once_for_all_levels_and_criteria_of_a_seed(worded, settings, monkeypatch):
    from sentinel.adapt.pruning import subject

    calls = []
    real = subject.calibrate
    monkeypatch.setattr(subject, "calibrate", lambda *a: calls.append(1) or real(*a))
    sweep._subject.cache_clear()
    for criterion, seed in (("fisher", 0), ("gradient", 0), ("fisher", 1)):
        assert run_job(settings, Job(worded, criterion, seed)).error is None
    assert len(calls) == 2


def test_many_levels_are_made_in_parts(worded, settings, monkeypatch):
    three = SweepSettings(**{**vars(settings), "heads": (0.2, 0.4, 0.6), "neurons": (0.0,), "compensate": (True,)})
    job = Job(worded, "magnitude", 0)
    whole = run_job(three, job).rows
    monkeypatch.setattr(sweep, "MODELS_AT_ONCE", 2)
    assert len(whole) == 3
    assert numbers(run_job(three, job).rows) == numbers(whole)


def test_sweep_by_processes_writes_rows_and_names_what_failed(worded, letters, tmp_path, capsys):
    out = tmp_path / "sweep.json"
    lost = str(tmp_path / "lost")
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "mute", None, Record())
    models = f"{worded},{lost},{tmp_path / 'mute'}"
    code = main(arguments(letters, out, "--models", models, "--criteria", "fisher,random", "--seeds", "0,1"))
    told = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in told.err
    assert "jobs failed, and" in told.err and "that would fail alike were not run" in told.err
    assert told.err.count(f"{lost} does not exist") == 1 and told.err.count("mute has no tokenizer") == 1
    found = ResultSet.read(out)
    assert len(found.results) == 1 + 2 * 2 * 2 * 2
    assert {(r.criterion, r.seed) for r in found.results[1:]} == {(c, s) for c in ("fisher", "random") for s in (0, 1)}
    assert set(found.runs["sweep"]["failed"]) >= {lost, str(tmp_path / "mute")}
    assert "over dense" in told.out and "67 %" in told.out
    assert not multiprocessing.active_children()
    save_checkpoint(load(worded).decoder, lost, load(worded).tokenizer, Record())
    more = arguments(letters, out, "--models", f"{worded},{lost}", "--criteria", "fisher,random", "--seeds", "0,1")
    assert main([*more, "--resume", "--workers", "1"]) == 0
    again = ResultSet.read(out)
    assert again.results[: len(found.results)] == found.results and again.runs["sweep"]["failed"] == {}
    copied = [(*n[1:],) for n in numbers(again.results) if n[0] == lost]
    assert copied == [(*n[1:],) for n in numbers(again.results) if n[0] == worded]
    assert main(["report", "--from", str(out), "-o", str(tmp_path / "report")]) == 0
    assert "Quality by model, criterion and level" in (tmp_path / "report" / "report.md").read_text()


def test_jobs_that_would_fail_like_those_before_them_are_not_run(settings, tmp_path):
    jobs = plan_jobs(["lost", "short", "good"], ["fisher", "random"], [0, 1])
    file = SweepFile(tmp_path / "s.json", settings, resume=False)
    assert all(map(file.wants, jobs))
    file.record(Outcome(Job("lost"), error="lost does not exist"))
    file.record(Outcome(Job("short"), (sweep.Result("sweep", "short", "real", "level 1"),)))
    for job in jobs[6:8]:
        file.record(Outcome(job, error="the text is too short"))
    assert all(file.wants(job) for job in jobs if job.model == "short")
    file.record(Outcome(jobs[8], error="the text is too short"))
    assert {job.model for job in file.left(jobs) if job not in file.failed and file.wants(job)} == {"good"}
    told = file.failures(jobs) or ""
    assert told.startswith("4 of 15 jobs failed, and 5 that would fail alike were not run; --resume runs them again: ")
    assert told.count("the text is too short (short, fisher, seed 0 and 2 more)") == 1
    assert told.count("lost does not exist (lost)") == 1


def test_one_failure_of_all_jobs_is_told_once_and_soon(letters, tmp_path, capsys):
    code = main(arguments(letters, tmp_path / "s.json", "--models", "./nowhere", "--workers", "1"))
    told = capsys.readouterr()
    assert code == 2 and told.out == ""
    assert told.err.splitlines() == [
        "./nowhere: failed",
        "sentinel: 1 of 9 jobs failed, and 8 that would fail alike were not run; --resume runs them again: "
        "./nowhere does not exist (./nowhere)",
    ]


def test_a_resumed_sweep_runs_only_what_is_left(settings, tmp_path):
    path = tmp_path / "s.json"
    jobs = plan_jobs(["m"], ["fisher", "random"], [0])
    file = SweepFile(path, settings, resume=True)
    assert file.left(jobs) == jobs
    file.record(Outcome(jobs[1], error="no"))
    assert file.left(jobs) == jobs
    rows = tuple(sweep.Result("sweep", "m", "real", "level 1", criterion="fisher", seed=0) for _ in range(2))
    file.record(Outcome(jobs[1], rows))
    again = SweepFile(path, settings, resume=True)
    assert again.left(jobs) == [jobs[0], jobs[2]] and not again.failed
    assert again.rows(jobs) == list(rows)


def test_other_files_and_settings_are_refused(settings, letters, tmp_path, capsys):
    path = tmp_path / "s.json"
    SweepFile(path, settings, resume=False).record(Outcome(Job("m"), error="no"))
    with pytest.raises(InputError, match="exists; go on with it by --resume"):
        SweepFile(path, settings, resume=False)
    other = SweepSettings(**{**vars(settings), "eval_tokens": 64})
    with pytest.raises(InputError, match="eval_tokens 128, not 64"):
        SweepFile(path, other, resume=True)
    reordered = SweepSettings(**{**vars(settings), "neurons": (0.25, 0.0)})
    assert SweepFile(path, reordered, resume=True).rows() == []
    data = json.loads(path.read_text())
    data["runs"] = {}
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="not the results file of a sweep"):
        SweepFile(path, settings, resume=True)
    shared = {**letters, "test": letters["calibration"]}
    assert main(arguments(shared, tmp_path / "new.json", "--models", "m")) == 2
    assert "was calibrated or trained on" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--criteria", "luck"], "luck"),
        (["--criteria", "fisher,"], "empty name"),
        (["--heads", "0"], "removes something"),
        (["--heads", "0.5,0.5"], "names a ratio twice"),
        (["--seeds", "1,1"], "twice"),
        (["--workers", "0"], "at least 1"),
        (["--address", "auto"], "--backend ray"),
    ],
)
def test_bad_sweeps_are_one_sentence(more, said, letters, tmp_path, capsys):
    try:
        code = main(arguments(letters, tmp_path / "s.json", *more))
    except SystemExit as exit:
        code = exit.code
    told = capsys.readouterr().err
    assert code == 2 and said in told and told.count("\n") == 1
    assert not (tmp_path / "s.json").exists()


def _die(settings, job):
    os._exit(9)


def _break(settings, job):
    raise ZeroDivisionError("a fault of ours")


@pytest.mark.parametrize(("job", "error"), [(_die, InputError), (_break, ZeroDivisionError)])
def test_a_lost_worker_ends_the_sweep(job, error, settings, monkeypatch):
    monkeypatch.setattr("sentinel.measure.sweep_backends.run_job", job)
    with pytest.raises(error):
        list(in_processes([Job("a"), Job("b")], settings, 1))
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_sweep_keeps_its_rows_and_leaves_no_process(stop, worded, letters, tmp_path):
    out = tmp_path / "s.json"
    seeds = ",".join(str(i) for i in range(400))
    command = [sys.executable, "-m", "sentinel", *arguments(letters, out, "--models", worded, "--seeds", seeds)]
    process = subprocess.Popen(
        [*command, "--criteria", "fisher", "--workers", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while "fisher, seed 1: 4 rows" not in process.stderr.readline():
        assert process.poll() is None
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    for pid in (process.pid, *(children if stop == signal.SIGINT else ())):  # Ctrl-C goes to all of a terminal's
        os.kill(pid, stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -9)
    assert "Traceback" not in errors
    assert len(ResultSet.read(out).results) >= 1 + 4
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == [] or stop == signal.SIGKILL
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_ray_gives_the_rows_that_this_process_gives(worded, settings, tmp_path):
    ray = pytest.importorskip("ray")
    jobs = [*plan_jobs([worded], ["fisher", "random"], [0]), Job(str(tmp_path / "lost"))]
    by_ray = list(on_ray(jobs, settings, workers=2))
    assert not ray.is_initialized()
    here = [run_job(settings, job) for job in jobs]
    for outcomes in (by_ray, here):
        assert {outcome.job for outcome in outcomes} == set(jobs)
        assert ["does not exist" in (o.error or "") for o in outcomes if o.error] == [True]
    assert numbers(r for o in by_ray for r in o.rows) == numbers(r for o in here for r in o.rows)


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "can't be reached"), ("somewhere", "not understood"), ("h:99999999", "reached")],
)
def test_dead_ray_addresses_are_refused_at_once(address, said, settings):
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=said):
        list(on_ray([Job("m")], settings, workers=1, address=address))
