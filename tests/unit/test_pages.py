"""What the pages name is there: links and anchors, files, commands and options, modules, settings,
targets of make.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main

from services.creator.config import CreatorSettings
from services.processor.config import ProcessorSettings
from services.storage.config import StorageSettings
from services.trainer.config import TrainerSettings
from smile.cli.app import build
from smile.config import variable

ROOT = Path(__file__).resolve().parents[2]
SERVICES = (CreatorSettings, ProcessorSettings, StorageSettings, TrainerSettings)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
SHELLS = ("", "sh", "text")
ENDINGS = r"py|pyi|md|json|proto|lua|yml|yaml|toml|c|cpp|h|txt|csv|Dockerfile|svg|binpb"
FILE = re.compile(rf"[\w./-]*\w\.(?:{ENDINGS})|(?:\.?[\w-]+/)+[\w.-]*")
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ +)*smile ([a-z].*)")
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
VARIABLE = re.compile(r"SMILE_[A-Z0-9_]*[A-Z0-9]")
MADE_BY_USERS = {  # what stands in a bucket, in a data folder, in an environment, or is no file
    ".curve.json", ".curve.svg", "DIR/signing-keys", "DIR/unsigned-accepted", "Europe/Berlin",
    "docker-compose.override.yml", "quarantine/", "secrets.json", "vplm.json",
}  # fmt: skip


def _files(*options: str) -> list[str]:
    told = subprocess.run(
        ["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return told.stdout.splitlines()


@cache
def _there() -> frozenset[str]:
    """Files and folders of the repository, from its root."""
    files = _files("--cached", "--others", "--exclude-standard")
    folders = {str(parent) for file in files for parent in Path(file).parents}
    return frozenset({*files, *folders})


# Those in git: what examples export has pages, too.
PAGES = [each for each in _files("*.md") if (ROOT / each).is_file()]


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _prose(page: str) -> str:
    return FENCE.sub("", _text(page))


def _lines(page: str) -> Iterator[str]:
    """What is typed, or could be: lines of blocks for a shell, and words in code."""
    for language, block in FENCE.findall(_text(page)):
        if language in SHELLS:
            yield from (line.partition(" #")[0] for line in block.splitlines())
    yield from CODE.findall(_prose(page))


def _anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ +(.+?) *$", _prose(page), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", LINK.sub("]", heading).lower()) for heading in headings)
    return {each.replace(" ", "-") for each in kept}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for link in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        name = str(target.resolve().relative_to(ROOT))
        if name not in _there() or (anchor and anchor not in _anchors(name)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_files_are_there(page: str) -> None:
    """From the root, or as the end of a path: pages name files of what they are about."""
    named = {word for word in CODE.findall(_prose(page)) if FILE.fullmatch(word)}
    ends = {word: word.removeprefix("./").rstrip("/") for word in named - MADE_BY_USERS}
    lost = [
        word
        for word, end in ends.items()
        if not any(each == end or each.endswith(f"/{end}") for each in _there())
    ]
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_these_options(page: str) -> None:
    typed = [found[1] for line in _lines(page) if (found := COMMAND.match(line.strip()))]
    assert [wrong for line in typed for wrong in _wrong_in(line)] == []


command_line = cache(lambda: typer.main.get_command(build()))


def _wrong_in(line: str) -> list[str]:
    """Words of a command, without `smile`, that the command line does not have."""
    command, words = command_line(), line.split()
    while (commands := getattr(command, "commands", None)) and words:
        if words[0] not in commands:
            return [f"{words[0]} in {line}"]
        command = commands[words.pop(0)]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    used = OPTION.findall(" ".join(words))
    return [f"{option} in {line}" for option in used if option not in known | {"--help"}]


def test_wrong_words_of_commands_are_seen() -> None:
    assert _wrong_in("vplms list --deleted") == _wrong_in("up --data DIR") == []
    assert _wrong_in("vplms lst") == ["lst in vplms lst"]
    assert _wrong_in("domains delete sport --force") == ["--force in domains delete sport --force"]


@pytest.mark.parametrize("page", PAGES)
def test_modules_can_be_run(page: str) -> None:
    named = {name for line in _lines(page) for name in re.findall(r"python3? -m ([\w.]+)", line)}
    ours = {name for name in named if name.partition(".")[0] in _there()}
    assert [name for name in sorted(ours) if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("page", PAGES)
def test_variables_are_read_somewhere(page: str) -> None:
    assert sorted(set(VARIABLE.findall(_text(page))) - _variables()) == []


@cache
def _variables() -> frozenset[str]:
    """All that programs and containers name, and all settings."""
    found = {variable(settings, name) for settings in SERVICES for name in settings.model_fields}
    for path in _there():
        program = path.endswith((".py", ".yml", ".Dockerfile")) and not path.startswith("tests/")
        if program and (ROOT / path).is_file():
            found |= set(VARIABLE.findall(_text(path)))
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES)
def test_make_has_these_targets(page: str) -> None:
    made = {
        word
        for line in _lines(page)
        if line.startswith("make ")
        for word in line.partition(";")[0].split()[1:]
    }
    targets = set(re.findall(r"^([a-z-]+):", _text("Makefile"), re.MULTILINE))
    assert sorted(made - targets) == []
