"""Commands that the documents show are commands there are, with options that they have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smile.cli.app import build

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("README", *(f"docs/{page}" for page in ("guide", "materialized", "deployment", "errors")))
ASSIGNED = r"(?:[A-Z_]+=\S+ )*"
COMMANDS_MIN = 60  # fewer on all pages, and they are not found any more


def shown(page: str) -> list[str]:
    """Commands of a page, in blocks and in sentences."""
    text = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|text|)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(rf"`{ASSIGNED}(smile [^`]+)`", prose)
    whole = [
        line
        for block in blocks
        for line in re.findall(rf"^{ASSIGNED}(smile .*)$", block, re.MULTILINE)
    ]
    return [*whole, *(re.sub(r"\[(-.*?)\]", r"\1", " ".join(each.split())) for each in inline)]


def refused(line: str) -> str:
    """Why the command line would not take it; nothing where it would. No command is run."""
    ended = CliRunner().invoke(build(), [*shlex.split(line)[1:], "--help"])
    return ended.stderr if ended.exit_code else ""


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_documents_is_there(page: str) -> None:
    assert {line: why for line in shown(page) if (why := refused(line))} == {}


def test_commands_are_found() -> None:
    assert sum(len(shown(page)) for page in PAGES) >= COMMANDS_MIN


@pytest.mark.parametrize("line", ["smile nothing", "smile create mails --colour red"])
def test_what_there_is_not_is_refused(line: str) -> None:
    assert "No such" in refused(line)
