"""The style law, run as a test over every file git knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("smile/v1/", "buf/")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
LINE_CHARS_MAX = 100
PARAMETERS_MAX = 8
BANNED_MODULES = {"utils", "helpers", "common", "manager", "misc"}
ENCODERS = ROOT / "smile" / "model" / "skip" / "encoders"
ENCODER_BYTES_MAX = 15_000_000
ENVIRONMENT_READERS = {"smile/config.py"}


def _listed(*options: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).exists()]


def _tracked(*suffixes: str) -> list[Path]:
    listed = _listed("--cached", "--others", "--exclude-standard")
    named = [(path, str(path.relative_to(ROOT))) for path in listed]
    return [
        path for path, name in named if name.endswith(suffixes) and not name.startswith(GENERATED)
    ]


PYTHON = _tracked(".py")
SOURCE = [path for path in PYTHON if "tests" not in path.relative_to(ROOT).parts]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    end = node.end_lineno or node.lineno
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    skipped = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return end - node.lineno + 1 - skipped


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= FILE_LINES_MAX, f"{len(lines)} lines, at most {FILE_LINES_MAX}"
    for function in _functions(path):
        length = _body_lines(function)
        assert length <= FUNCTION_LINES_MAX, f"{function.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCE, ids=_name)
def test_signatures(path: Path) -> None:
    for function in _functions(path):
        arguments = function.args
        count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
        own = count - (1 if arguments.args and arguments.args[0].arg in ("self", "cls") else 0)
        assert own <= PARAMETERS_MAX, f"{function.name} takes {own} parameters"


@pytest.mark.parametrize("path", SOURCE, ids=_name)
def test_words(path: Path) -> None:
    text = path.read_text()
    assert path.stem not in BANNED_MODULES, "name the module for what it does"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))", text), "a TODO names its issue"
    assert not re.search(r"^\s*print\(", text, re.MULTILINE), "output goes through rich or logs"
    assert "import pickle" not in text, "nothing is pickled"
    assert "torch.load(" not in text, "nothing is unpickled"
    if _name(path) not in ENVIRONMENT_READERS and _name(path).startswith("services/"):
        assert not re.search(r"os\.(environ|getenv)", text), "only smile/config.py reads it"


@pytest.mark.parametrize("path", SOURCE, ids=_name)
def test_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"class {node.name} has no docstring"


def test_no_silent_handlers() -> None:
    silent = [
        f"{_name(path)}:{node.lineno}"
        for path in SOURCE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and len(node.body) == 1
        and isinstance(node.body[0], ast.Pass)
    ]
    assert silent == []


def test_no_large_files() -> None:
    """Of those in git: what the guide's examples write beside them may be large."""
    large = [path for path in _listed("--cached") if path.stat().st_size > 1 << 20]
    assert [_name(path) for path in large if path.parent != ENCODERS] == []
    assert sum(path.stat().st_size for path in large) <= ENCODER_BYTES_MAX


def test_changelog_names_the_version() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()
