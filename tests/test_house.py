"""The house: no circles of files, nothing too long, and who may import whom."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from sentinel.cli import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
COMMAND_MODULES = {f"sentinel.commands.{name}" for name in (*COMMANDS, "lm_eval")}
SHARED = {  # what tests may import from tests
    "batches",
    "browser",
    "conftest",
    "family_configs",
    "gguf_models",
    "helpers",
    "native_oracle",
    "serving",
    "synthetic_results",
    "transformers_tests",
}


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module -> modules that it imports, inside functions too, for type checkers alone not."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("sentinel", exclude_type_checking_imports=True, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_files_import_each_other_in_no_circle(imports):
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_no_file_is_longer_than_400_lines():
    lengths = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE + TESTS}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_is_longer_than_60_lines():
    lengths = {
        f"{named(path)}: {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in SOURCE + TESTS
        for function in functions(path)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_tests_import_no_test():
    tests = {path.stem for path in TESTS}
    assert {stem for stem in tests if not stem.startswith("test_")} == SHARED
    stems = "|".join(sorted(tests - SHARED))
    an_import = re.compile(rf"^.*\b(?:import|from)\b[^\n]*\b(?:{stems})\b.*$", re.MULTILINE)  # in strings too
    assert {named(path): found for path in TESTS if (found := an_import.findall(path.read_text("utf-8")))} == {}


def test_commands_import_no_command(imports):
    assert {module: found for module in COMMAND_MODULES if (found := imports[module] & COMMAND_MODULES)} == {}


def test_the_contract_of_independence_holds_every_command():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (independence,) = (contract for contract in contracts if contract["type"] == "independence")
    assert set(independence["modules"]) == COMMAND_MODULES


def test_settings_are_one_class_a_file_called_by_what_they_set():
    classes: dict[str, list[str]] = {}
    renamed = []
    for path in SOURCE + TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
                classes.setdefault(named(path), []).append(node.name)
            elif (
                isinstance(node, ast.alias) and node.name.endswith("Settings") and node.asname not in (None, node.name)
            ):
                renamed.append(f"{named(path)}: {node.name} as {node.asname}")
    found = [name for names in classes.values() for name in names]
    assert len(found) == len(set(found)) == len(classes) > 5 and "Settings" not in found
    assert renamed == []


def test_parsed_arguments_are_only_read():
    changed = [
        f"{named(path)}:{node.lineno}"
        for path in SOURCE
        for function in functions(path)
        for node in changes(function, {a.arg for a in arguments(function) if "Namespace" in annotation(a)})
    ]
    assert changed == []


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def annotation(argument: ast.arg) -> str:
    return "" if argument.annotation is None else ast.unparse(argument.annotation)


def changes(function: ast.AST, spaces: set[str]) -> Iterator[ast.expr]:
    """Where a function sets or deletes an attribute of one of ``spaces``, or gives it to ``setattr``, or changes its
    ``vars``."""
    own = "|".join(sorted(spaces))
    for node in ast.walk(function):
        if not spaces or not isinstance(node, ast.expr):
            continue
        stored = isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)
        text = ast.unparse(node)
        if (stored and re.match(rf"(?:{own})\.|vars\((?:{own})\)\[", text)) or (
            isinstance(node, ast.Call)
            and re.match(rf"(?:set|del)attr\((?:{own}),|vars\((?:{own})\)\.(?!items|get)", text)
        ):
            yield node


@pytest.mark.parametrize(
    "code", ["o.a = 1", "o.a += 1", "del o.a", "setattr(o, 'a', 1)", "vars(o)['a'] = 1", "vars(o).update(a=1)"]
)
def test_a_change_of_parsed_arguments_is_seen(code):
    assert list(changes(ast.parse(code), {"o"}))
    assert not list(changes(ast.parse("p.a = o.a; b = vars(o).items(); c = getattr(o, 'd')"), {"o"}))
