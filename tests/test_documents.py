"""README and docs: their commands are parsed by the command line, their Python by a type checker, their links resolve."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sentinel.cli import COMMANDS, build_parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """Code blocks of that language with the name of their document."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(path.name, code) for path in DOCUMENTS for code in pattern.findall(path.read_text(encoding="utf-8"))]


def commands() -> list[str]:
    """Every call of the command line, in blocks and in `code`; what follows a pipe or stands before it is the shell's."""
    lines = [line for _, block in blocks("(?:sh)?") for line in block.splitlines()]
    for path in DOCUMENTS:
        lines += re.findall(r"`(sentinel [^`]+)`", re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL))
    calls = [part.strip() for line in lines for part in line.split("#")[0].split("|")]
    return sorted(
        {call for call in calls if call.startswith("sentinel ") and " ..." not in call and "COMMAND" not in call}
    )


@pytest.mark.parametrize("call", commands())
def test_commands_are_as_the_command_line_takes_them(call: str) -> None:
    name, *arguments = shlex.split(call)[1:]
    if arguments:
        build_parser(name).parse_args([name, *arguments])
    else:  # a command by its name
        assert name in COMMANDS


def test_make_targets_are_there() -> None:
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line}
    called = [
        line.split()[1] for _, block in blocks("(?:sh)?") for line in block.splitlines() if line.startswith("make ")
    ]
    assert called and set(called) <= targets


def test_python_is_typed(tmp_path: Path) -> None:
    if shutil.which("pyright", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("pyright is not installed")
    found = blocks("python")
    assert found
    for number, (_, code) in enumerate(found):
        (tmp_path / f"block{number}.py").write_text(code)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT / "src")]}))
    command = [
        str(Path(sys.executable).with_name("pyright")),
        "--pythonpath",
        sys.executable,
        "--project",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
