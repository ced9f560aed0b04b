"""`smile domains create | list | show | delete` in real processes, on the toy backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from smile.cli.app import build
from smile.model.backbone import Backbone
from smile.model.toy import WORDS, write_toy_backbone
from tests.contract.materialized_world import Encoder

INVALID, NOT_FOUND, EXISTS = 3, 4, 6


def smile(*arguments: str) -> Result:
    return CliRunner().invoke(build(), list(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, its local encoder, a corpus, and domain `news` made of it."""
    made = tmp_path_factory.mktemp("domains")
    backbone = Backbone.load(write_toy_backbone(made / "toy"), "toy")
    Encoder.make(backbone, made / "general.safetensors")
    words = [word for word in WORDS if not word.startswith("#")]
    lines = [" ".join(words[at % 30 : at % 30 + 9]).capitalize() + "." for at in range(100)]
    (made / "corpus.txt").write_text("\n".join(lines))
    created = smile(*create(made, "news"))
    assert created.exit_code == 0, created.stderr
    return made


def create(folder: Path, name: str, *more: str) -> list[str]:
    return [
        "domains", "create", name, "--backbone", f"toy=dir:{folder / 'toy'}",
        "--encoder", str(folder / "general.safetensors"), "--folder", str(folder / "domains"),
        "--corpus", str(folder / "corpus.txt"), "--epochs", "1", "--threads", "1",
        "--difference-min", "0", *more,
    ]  # fmt: skip


def test_people_see_what_was_made_and_how_close_it_came(folder: Path) -> None:
    made = smile(*create(folder, "sport", "--parent", "news", "--alpha", "0.3"))
    assert made.exit_code == 0, made.stderr
    assert "which cover 0.3" in made.stdout and "with the parent's rows" in made.stdout
    listed = smile("domains", "list", "--folder", str(folder / "domains"))
    assert listed.exit_code == 0
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert [row[:2] for row in rows if row[0] in ("news", "sport")] == [
        ["news", "general"],
        ["sport", "news"],
    ]
    shown = smile("domains", "show", "sport", "--folder", str(folder / "domains"), "--verify")
    assert shown.exit_code == 0 and "parent" in shown.stdout and "every byte" in shown.stderr


def test_programs_read_json(folder: Path) -> None:
    made = smile(*create(folder, "law"), "--output", "json")
    assert made.exit_code == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["domain"] == "law" and told["delta"]["alpha"] == 0.5
    assert told["measures"]["error_layer_2"] > 0 and told["measures"]["parent_error_layer_2"] > 0
    place = ("--folder", str(folder / "domains"), "--output", "json")
    shown = json.loads(smile("domains", "show", "law", *place).stdout)
    assert shown["digest"] == told["digest"] and shown["corpus"]["digest"]
    listed = json.loads(smile("domains", "list", *place).stdout)["domains"]
    assert {"law", "news"} <= {one["domain"] for one in listed}


def test_refused(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for arguments, code, why in (
        (create(folder, "art", "--parent", "poetry"), NOT_FOUND, "parent must be one of general"),
        (create(folder, "art", "--budget", "5"), INVALID, "budget must be at least"),
    ):
        refused = smile(*arguments)
        assert (refused.exit_code, why in refused.stderr.replace("\n", " ")) == (code, True), (
            refused.stderr
        )
    arguments = create(folder, "art")
    arguments[arguments.index("--corpus") + 1] = str(empty)
    refused = smile(*arguments)
    assert refused.exit_code == INVALID and "at least 1 document, got 0" in refused.stderr
    write_toy_backbone(tmp_path / "other", seed=9)
    arguments = create(folder, "art")
    arguments[arguments.index("--backbone") + 1] = f"toy=dir:{tmp_path / 'other'}"
    refused = smile(*arguments)
    assert refused.exit_code == EXISTS and "local encoder was made for a backbone" in refused.stderr
    refused = smile("domains", "show", "poetry", "--folder", str(folder / "domains"))
    assert refused.exit_code == NOT_FOUND
    assert smile("domains", "list", "--folder", str(tmp_path / "none")).exit_code == EXISTS


def test_deleted_when_asked_and_no_other_is_under_it(folder: Path, tmp_path: Path) -> None:
    domains = tmp_path / "domains"
    shutil.copytree(folder / "domains" / "news", domains / "news")
    place = ("--folder", str(domains))
    made = smile(*create(folder, "art", "--parent", "news", *place))
    assert made.exit_code == 0, made.stderr
    refused = smile("domains", "delete", "news", *place, "--yes")
    assert refused.exit_code == EXISTS and "parent of art" in refused.stderr
    assert smile("domains", "delete", "poetry", *place, "--yes").exit_code == NOT_FOUND
    asked = CliRunner().invoke(build(), ["domains", "delete", "art", *place], input="n\n")
    assert asked.exit_code == 1 and "Delete domain art" in asked.stderr
    assert smile("domains", "show", "art", *place, "--verify").exit_code == 0
    told = smile("domains", "delete", "art", *place, "--output", "json")
    assert (told.exit_code, json.loads(told.stdout)) == (0, {"deleted": "art"})
    gone = CliRunner().invoke(build(), ["domains", "delete", "news", *place], input="y\n")
    assert gone.exit_code == 0 and "deleted news" in gone.stderr
    assert list(domains.iterdir()) == []
