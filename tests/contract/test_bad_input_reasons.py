"""`docs/errors.md` has every reason that the code can give, with its code, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from services.trainer.data.tables import Problem
from smile import errors
from smile.client.training import JobFailed
from smile.rpc.status import CODES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "errors.md"
REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
BY_NAME = {cls.__name__: code.name for cls, code in CODES.items()}
JOB = "JobFailure"


@cache
def trees() -> dict[Path, ast.Module]:
    sources = [*ROOT.glob("smile/**/*.py"), *ROOT.glob("services/**/*.py")]
    return {path: ast.parse(path.read_text()) for path in sources if "v1" not in path.parts}


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@cache
def constants() -> dict[str, str]:
    """Module-level names of texts, of all modules."""
    return {
        target.id: node.value.value
        for tree in trees().values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def texts(node: ast.expr) -> Iterator[str]:
    """The reasons an expression can be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))
    elif isinstance(node, ast.Name) and node.id in constants():
        yield constants()[node.id]


def given(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(error class, reason) of every error that a module makes with a reason of its own."""
    makers = dict(makers_of(tree))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        for keyword in node.keywords:
            if keyword.arg == "reason" and name in BY_NAME:
                yield from ((name, text) for text in texts(keyword.value))
        if name in makers:
            cls, place = makers[name]
            if place < len(node.args):
                yield from ((cls, text) for text in texts(node.args[place]))


def makers_of(tree: ast.Module) -> Iterator[tuple[str, tuple[str, int]]]:
    """Functions that take a `reason` and hand it to an error: name, class, place of the reason."""
    yield JOB, (JOB, 0)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        names = [argument.arg for argument in node.args.args]
        made = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
        for inner in made:
            for passed in (k.value for k in inner.keywords if k.arg == "reason"):
                if isinstance(passed, ast.Name) and passed.id in names and called(inner) in BY_NAME:
                    yield node.name, (called(inner), names.index(passed.id))


def reasons_of_code() -> dict[str, set[str]]:
    """Codes by reason, for all but jobs and rows."""
    found: dict[str, set[str]] = defaultdict(set)
    for cls, code in CODES.items():
        if cls is not errors.SmileError:
            found[cls.reason].add(code.name)
    for tree in trees().values():
        for name, reason in given(tree):
            if name != JOB:
                found[reason].add(BY_NAME[name])
    return dict(found)


def job_reasons() -> set[str]:
    """What ends jobs and is no error of a call."""
    found = {reason for tree in trees().values() for name, reason in given(tree) if name == JOB}
    gone = trees()[ROOT / "services" / "trainer" / "worker" / "failures.py"]
    for node in ast.walk(gone):
        if isinstance(node, ast.FunctionDef) and node.name == "_gone":
            returned = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
            found |= {text for value in returned if value is not None for text in texts(value)}
    return found


def table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the document."""
    section = DOCS.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


CALLS, SIDE = "Errors of calls", "Errors on your own side"
JOBS, ROWS = "Why training jobs fail", "What is wrong with a row"


def test_the_code_gives_the_reasons_we_think_it_does() -> None:
    """The reader of the code above sees what it should: a keyword, a constant, a maker."""
    found = reasons_of_code()
    assert found["UPDATE_MASK_INVALID"] == {"INVALID_ARGUMENT"}
    assert found["SERVICE_KEY_INVALID"] == {"UNAUTHENTICATED"}
    assert found["STREAM_TRUNCATED"] == {"INVALID_ARGUMENT"}
    assert found["BLOB_MISSING"] == {"DATA_LOSS"}
    assert found["TENANT_QUEUE_FULL"] == {"RESOURCE_EXHAUSTED"}
    assert found["STORE_FULL"] == {"UNAVAILABLE"}
    assert {"LOSS_NOT_FINITE", "DATASET_DELETED", "TOO_MANY_STEPS"} <= job_reasons()
    assert all(REASON.fullmatch(reason) for reason in found)


def test_every_reason_is_documented_with_its_code() -> None:
    documented: dict[str, set[str]] = defaultdict(set)
    for reason, codes, *_ in (*table(CALLS), *table(SIDE)):
        documented[reason] |= set(codes.split(", "))
    assert dict(documented) == reasons_of_code() | {
        "JOB_FAILED": {CODES[errors.SmileError].name},
        "JOB_CANCELLED": {CODES[errors.SmileError].name},
    }


def test_every_end_of_a_job_is_documented() -> None:
    assert {reason for reason, *_ in table(JOBS)} == job_reasons()


def test_every_problem_of_rows_is_documented() -> None:
    assert {reason for reason, *_ in table(ROWS)} == set(Problem)


@pytest.mark.parametrize("heading", [CALLS, SIDE, JOBS, ROWS])
def test_rows_say_something_once_and_in_order(heading: str) -> None:
    rows = table(heading)
    assert all(len(cell) > 3 for row in rows for cell in row), rows
    names = [row[0] for row in rows]
    assert names == sorted(set(names))
    assert JobFailed.reason == "JOB_FAILED"
