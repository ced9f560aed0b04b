"""The README's tours and the guide, typed word for word against a platform of real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
MATERIALIZED = (ROOT / "docs" / "materialized.md").read_text(encoding="utf-8")
# A shell that pastes the lines `smile up` prints, on any free ports; a test's reader has no hands.
READER = """set -e; exec 2>&1; export COLUMNS=300
smile() {
  if [ "$1" != up ]; then command smile "$@"; return; fi
  command smile up --port-base 0 > shown 2>&1 || { cat shown; return 1; }
  grep '^export' shown > lines; . ./lines
}
"""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _commands() -> list[str]:
    """Every `smile ...` line of the README's command-line tour, from `smile up` to `smile down`."""
    lines = [line for block in _blocks(README, "") for line in block.splitlines()]
    tour = [line for line in lines if line.startswith("smile ")]
    assert tour[0] == "smile up"
    assert tour[-1] == "smile down"
    return tour


class Shell:
    """A person's shell: one directory, one environment that `export` lines change."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        for name in ("SMILE_API_KEY", "SMILE_ENDPOINTS"):
            self.environment.pop(name, None)
        (cwd / "examples").symlink_to(ROOT / "examples")

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=360,
            check=False,
        )
        assert done.returncode == 0, (
            f"{command} ended with {done.returncode}:\n{done.stderr or done.stdout}"
        )
        return done.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell in which `smile up` was typed and its two lines pasted. Ports are any free ones,
    since a platform may run on the usual ones."""
    shell = Shell(tmp_path_factory.mktemp("reader"))
    try:
        shown = shell.run("bash", "-c", "smile up --port-base 0 2>&1")
        for name, value in re.findall(r"^export (\w+)=(.*)$", shown, re.MULTILINE):
            shell.environment[name] = value
        (secrets,) = re.findall(r"operator's key is in (\S+)", shown)
        shell.environment["SMILE_OPERATOR_KEY"] = json.loads(Path(secrets).read_text())[
            "operator_key"
        ]
        yield shell
    finally:
        shell.run("bash", "-c", "smile down")


def test_the_command_line_tour_of_the_readme(shell: Shell) -> None:
    for line in _commands()[1:-1]:
        shell.run("bash", "-c", line)
    answer = json.loads(shell.run("smile", "infer", "mails", "The parcel came late", "-o", "json"))
    assert answer["version"].endswith("/versions/1")  # the tour rolls back


def test_the_sdk_tour_of_the_readme(shell: Shell) -> None:
    (tour,) = _blocks(README, "python")
    shown = shell.run(sys.executable, "-c", tour)
    assert "billing tenants/default/vplms/tickets/versions/2" in shown
    assert "NOT_FOUND tenants/default/vplms/absent does not exist" in shown


def test_the_examples_of_the_guide(shell: Shell) -> None:
    shown = shell.run(sys.executable, "-c", "\n".join(_blocks(GUIDE, "python")))
    assert "60 rows, 0 problems" in shown
    assert "1 LABEL_UNKNOWN" in shown
    assert "2 TEXT_EMPTY" in shown
    assert "60 answers" in shown


def test_the_page_on_materialised_answers(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    script = READER + "\n".join(_blocks(MATERIALIZED, "sh"))
    (python,) = _blocks(MATERIALIZED, "python")
    (tmp_path / "watch.py").write_text(python)
    try:
        shown = shell.run("bash", "-c", f"{script}\n{sys.executable} watch.py")
    finally:
        shell.run("bash", "-c", "smile down")
    told = re.findall(r"materialised, (\d+) % of \d+ n-grams found", shown)
    assert told[:3] == ["0", "0", "0"], "there is no table yet, and one tenant teaches nothing"
    assert int(told[3]) > 0, "the table has some"
    assert re.search(r"[1-9]\d*% of \d+ n-grams found", shown)
    assert re.search(r"since start, [1-9]\d* rows at hand", shown)
