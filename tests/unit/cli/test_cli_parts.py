"""The command line's pure parts: the exit table, JSON, tables, labels, options to values."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import smile
from smile import errors
from smile.accounting import Counts, UsageDay
from smile.cli.app import EPILOG, build
from smile.cli.command import Session, command
from smile.cli.exits import EXITS, Exit, exit_of
from smile.cli.labels import labels_of
from smile.cli.output import error_json, size, table, to_json, when
from smile.cli.progress import JobView
from smile.cli.usage import BAR_CHARS, day_table, saving
from smile.cli.vplms import PetOptions, pet_spec, pet_text
from smile.errors import SmileError
from smile.resources import VplmUsage

ISSUE = [
    "backbones",
    "create",
    "list",
    "show",
    "delete",
    "upload",
    "train",
    "jobs",
    "watch",
    "cancel",
    "infer",
    "usage",
    "keys",
]


def tree(root: type[SmileError] = SmileError) -> list[type[SmileError]]:
    """Every class of the platform's own error tree, and the client's."""
    found = [cls for sub in root.__subclasses__() for cls in tree(sub)]
    return [cls for cls in (root, *found) if cls.__module__.startswith("smile.")]


def test_the_exit_table_is_complete() -> None:
    assert set(EXITS) == set(tree())
    assert {Exit(code) for code in EXITS.values()} == set(Exit) - {Exit.OK, Exit.USAGE}


@pytest.mark.parametrize("cls", tree())
def test_every_error_has_its_exit(cls: type[SmileError]) -> None:
    job = smile.TrainingJob("j", "v", "d", state=smile.JobState.FAILED)
    error = cls(job) if cls is smile.JobFailed else cls("x")
    assert exit_of(error) is EXITS[cls]


def test_errors_made_elsewhere_exit_as_their_nearest_class() -> None:
    class Odd(errors.InvalidName):
        pass

    assert exit_of(Odd("x")) is Exit.INVALID


def test_the_help_names_every_exit_code() -> None:
    for code in Exit:
        assert f"{int(code)} " in EPILOG


def test_the_version_is_told() -> None:
    told = CliRunner().invoke(build(), ["--version"])
    assert (told.exit_code, told.stdout) == (0, f"smile {version('smile-platform')}\n")


def test_every_command_of_the_issue_is_there_with_help() -> None:
    app = build()
    for name in [*ISSUE, "datasets", "versions", "alias", "tenants"]:
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0 and "Usage" in result.stdout
    assert CliRunner().invoke(app, []).exit_code == 2


def test_values_become_json() -> None:
    when_ = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    vplm = smile.Vplm(
        "n",
        smile.ModuleSpec("b", "d", smile.LoRA(2), smile.HeadSpec(smile.Task.EMBEDDING)),
        aliases={"serving": 1},
        create_time=when_,
    )
    found = to_json(vplm)
    assert json.loads(json.dumps(found)) == found
    assert isinstance(found, dict)
    assert found["create_time"] == "2026-01-02T03:04:05+00:00"
    assert found["spec"] == {
        "backbone": "b",
        "backbone_digest": "d",
        "pet": {
            "kind": "lora",
            "first_layer": None,
            "rank": 2,
            "alpha": 4.0,
            "targets": ["query", "value"],
            "density": 0.0,
        },
        "head": {"task": "embedding", "labels": [], "pooling": "mean"},
        "dtype": "float16",
        "domain": "",
    }
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json(object())


def test_errors_become_json() -> None:
    error = errors.Overloaded("full", retry_after=1.5, violations=[("a", "b")])
    assert error_json(error) == {
        "error": {
            "reason": "QUEUE_FULL",
            "message": "full",
            "metadata": {},
            "retry_after": 1.5,
            "violations": [{"field": "a", "description": "b"}],
        }
    }


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (1_234_567, "1.2 MB"),
        (9 * 10**15, "9000.0 TB"),
    ],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_savings_are_of_the_serving_version() -> None:
    assert saving(VplmUsage("v", 3, 900, 100, 10_000)) == "99.00 %"
    assert saving(VplmUsage("v", 0, 0, 0, 0)) == ""


def test_a_day_of_use_is_a_line_of_a_narrow_screen() -> None:
    busy = Counts(1_234, 9_876, 123_456, 98_000_000, 45_000_000, 0, 24)
    week = [UsageDay(date(2026, 11, 16 + day), busy if day else Counts()) for day in range(7)]
    told = io.StringIO()
    Console(file=told, width=80).print(day_table(week))
    lines = told.getvalue().splitlines()
    assert len(lines) == 2 + 7
    assert "█" * BAR_CHARS in lines[-1] and "█" not in lines[2]
    assert when(None) == ""


def test_cells_are_never_read_as_markup() -> None:
    shown = io.StringIO()
    Console(file=shown, width=80).print(table(["text", "n>"], [["[red]x[/red]", "1"]]))
    assert "[red]x[/red]" in shown.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text,label\nx,b\ny,a\nz,b\nw,\n", ["a", "b"]),
        ("a.csv", '\ufefflabel,text\n"a,b",x\n', ["a,b"]),
        ("a.jsonl", '{"label": 2}\n\n{"label": "1"}\n', ["1", "2"]),
    ],
)
def test_labels_are_read_from_files(
    tmp_path: Path, name: str, content: str, expected: list[str]
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert labels_of(path, "label", smile.Task.SEQUENCE_CLASSIFICATION) == expected


def test_labels_of_words_are_taken_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,tags\na b,O PER\nc,LOC\n")
    (tmp_path / "a.jsonl").write_text('{"tags": ["O", "B-X"]}\n')
    task = smile.Task.TOKEN_CLASSIFICATION
    assert labels_of(tmp_path / "a.csv", "tags", task) == ["LOC", "O", "PER"]
    assert labels_of(tmp_path / "a.jsonl", "tags", task) == ["B-X", "O"]


def test_labels_are_read_from_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"label": ["x", "y", "x"]}), tmp_path / "a.parquet")
    task = smile.Task.SEQUENCE_CLASSIFICATION
    assert labels_of(tmp_path / "a.parquet", "label", task) == ["x", "y"]
    with pytest.raises(errors.DatasetInvalid, match="no column 'topic'; it has label"):
        labels_of(tmp_path / "a.parquet", "topic", task)
    (tmp_path / "b.parquet").write_bytes(b"nonsense" * 4)
    with pytest.raises(errors.DatasetInvalid, match="is not Parquet"):
        labels_of(tmp_path / "b.parquet", "label", task)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\nx,\xff\n", "is not UTF-8"),
        ("a.csv", b"text,topic\nx,a\n", "no column 'label'; it has text, topic"),
        ("a.csv", b"", "no column 'label'; it has none"),
        ("a.jsonl", b"{}\n", "line 1 has no 'label'"),
        ("a.jsonl", b"[1]\n", "line 1 has no 'label'"),
        ("a.jsonl", b'{"label": "a"}\n{"label"', "line 2 is not JSON"),
        ("a.csv", b"label\n" + b"\n".join(b"%d" % n for n in range(1001)), "more than 1000"),
        ("a.txt", b"x", "known are"),
        ("gone.csv", None, "cannot read"),
    ],
)
def test_files_without_labels_are_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.InvalidArgument, match=message):
        labels_of(tmp_path / name, "label", smile.Task.SEQUENCE_CLASSIFICATION)


def test_options_become_pet_specs() -> None:
    kinds = smile.PetKind
    assert pet_spec(PetOptions()) == smile.Pfeiffer(24)
    assert pet_spec(PetOptions(kinds.HOULSBY, rank=3, first_layer=1)) == smile.Houlsby(
        3, first_layer=1
    )
    lora = pet_spec(PetOptions(kinds.LORA, targets="key,output", alpha=2.0))
    assert lora == smile.LoRA(8, alpha=2.0, targets=["key", "output"])
    assert pet_text(lora) == "lora r8 (key, output)"
    assert pet_spec(PetOptions(kinds.BITFIT)) == smile.BitFit()
    assert pet_spec(PetOptions(kinds.NONE)) == smile.NoPet()
    assert pet_spec(PetOptions(kinds.DIFF_PRUNING)) == smile.DiffPruning(0.005)
    assert pet_text(smile.DiffPruning(0.005, first_layer=3)) == "diff-pruning 0.5 % from layer 3"
    mask = pet_spec(PetOptions(kinds.MASK_BERT, density=0.02, first_layer=1))
    assert mask == smile.MaskBert(0.02, first_layer=1)
    for options in (
        PetOptions(kinds.NONE, rank=1),
        PetOptions(kinds.MASK_BERT, rank=1),
        PetOptions(kinds.LORA, density=0.01),
        PetOptions(kinds.MASK_BERT, targets="query"),
        PetOptions(kinds.DIFF_PRUNING, density=0.0),
    ):
        with pytest.raises(errors.InvalidSpec):
            pet_spec(options)
    with pytest.raises(errors.InvalidSpec, match="between 1 and 1024 for kind 'pfeiffer', got 0"):
        pet_spec(PetOptions(rank=0))


@dataclass(frozen=True, slots=True)
class Paint:
    """Options of a command made up here."""

    colour: Annotated[str, typer.Option(help="Which.")] = "blue"


def test_dataclasses_stand_for_options_and_errors_for_exits() -> None:
    seen: list[object] = []

    def paint(session: Session, what: Annotated[str, typer.Argument()], paint: Paint) -> None:
        seen.append((what, paint, session.json))
        if what == "sky":
            raise errors.QuotaExceeded("no more sky")

    app = typer.Typer()
    app.command()(command(paint, platform=False))
    run = CliRunner().invoke
    assert run(app, ["door", "--colour", "red", "-o", "json"]).exit_code == 0
    assert seen == [("door", Paint("red"), True)]
    result = run(app, ["sky"])
    assert (result.exit_code, result.stderr) == (7, "error: no more sky (QUOTA_EXCEEDED)\n")
    assert run(app, ["door", "--api-key", "x"]).exit_code == 2


def _events() -> list[smile.TrainingEvent]:
    start = datetime(2026, 11, 22, 22)
    queued = smile.TrainingJob("j", "v", "d", queue_position=2, estimated_start_time=start)
    found = [smile.TrainingEvent("1", job=queued)]
    for step in (1, 2):
        progress = smile.JobProgress("training", step, 2, step, 2, 0.5)
        job = smile.TrainingJob("j", "v", "d", state=smile.JobState.RUNNING, progress=progress)
        found.append(smile.TrainingEvent("2", metrics=(smile.Metric("train_loss", 0.5, step, 1),)))
        found.append(smile.TrainingEvent("3", job=job))
    ended = smile.TrainingJob("j", "v", "d", state=smile.JobState.SUCCEEDED)
    return [*found, smile.TrainingEvent("4", job=ended)]


@pytest.mark.parametrize("terminal", [False, True])
def test_jobs_are_shown_as_lines_or_as_a_bar(terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100, color_system=None)
    with JobView(console) as view:
        for event in _events():
            view.show(event)
    text = shown.getvalue()
    if terminal:
        assert "succeeded" in text and "2/2" in text and "train_loss 0.5000" in text
    else:
        assert text.splitlines() == [
            "queued  2 ahead  starts about 2026-11-22 22:00:00",
            "training, epoch 1 of 2  train_loss 0.5000",
            "training, epoch 2 of 2  train_loss 0.5000",
            "succeeded  train_loss 0.5000",
        ]
