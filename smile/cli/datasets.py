"""`smile upload` and `smile datasets list | validate | delete`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from smile.cli.command import Session, command
from smile.cli.exits import Exit
from smile.cli.output import facts, short, size, table, when, write_json
from smile.resources import ColumnMapping, Dataset, DatasetFormat, DatasetReport

PROBLEMS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """Which columns hold what."""

    text_column: Annotated[str, typer.Option(help="Column of texts.")] = "text"
    label_column: Annotated[str, typer.Option(help="Column of labels.")] = "label"
    pair_column: Annotated[
        str, typer.Option(help="Column of second texts, to train embeddings on pairs.")
    ] = ""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("upload")(command(upload))
    group = typer.Typer(help="Datasets: list, validate, delete.", no_args_is_help=True)
    group.command("list")(command(list_))
    group.command("validate")(command(validate))
    group.command("delete")(command(delete))
    app.add_typer(group, name="datasets")


def upload(
    session: Session,
    dataset: Annotated[str, typer.Argument(help="Id of the new dataset.")],
    file: Annotated[Path, typer.Argument(help="CSV, JSON Lines or Parquet.")],
    format: Annotated[
        DatasetFormat | None, typer.Option(help="Default: told by the file's suffix.")
    ] = None,
    display_name: Annotated[str, typer.Option(help="Text for people.")] = "",
) -> None:
    """Upload a file as a dataset. Datasets never change; upload another under another id."""
    made = send(session, dataset, file, format=format, display_name=display_name)
    if session.json:
        return write_json(made)
    session.note(f"uploaded {made.name}")
    session.out.print(facts(_facts(made)))


def send(
    session: Session,
    dataset: str,
    file: Path,
    *,
    format: DatasetFormat | None = None,
    display_name: str = "",
) -> Dataset:
    """Uploads with a progress bar where somebody is watching."""
    with bar(session, f"uploading {file.name}") as on_progress:
        return session.client.upload_dataset(
            dataset, file, format=format, display_name=display_name, on_progress=on_progress
        )


@contextmanager
def bar(session: Session, what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of bytes on a terminal; nothing elsewhere."""
    if session.json or not session.err.is_terminal:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=session.err, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda sent, total: progress.update(task, completed=sent, total=total)


def list_(session: Session) -> None:
    """List your datasets."""
    found = list(session.client.datasets())
    if session.json:
        return write_json({"datasets": found})
    rows = [
        [short(d.name), str(d.format), size(d.size_bytes), d.digest[:12], when(d.create_time)]
        for d in found
    ]
    session.out.print(table(["dataset", "format", "size>", "digest", "created"], rows))


def validate(
    session: Session,
    dataset: Annotated[str, typer.Argument(help="Id of the dataset.")],
    vplm: Annotated[str, typer.Argument(help="Id of the vPLM it shall train.")],
    columns: ColumnOptions,
) -> None:
    """Read a dataset as a training job would, and report every problem by row. Exits with 3 where
    there are any."""
    mapping = ColumnMapping(columns.text_column, columns.label_column, columns.pair_column)
    report = session.client.validate_dataset(dataset, vplm, columns=mapping)
    if session.json:
        write_json(report)
    else:
        show_report(session, report)
    if report.problem_count:
        raise typer.Exit(Exit.INVALID)


def delete(
    session: Session,
    dataset: Annotated[str, typer.Argument(help="Id of the dataset.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a dataset. Versions trained on it stay."""
    if not yes and not session.json:
        typer.confirm(f"Delete dataset {dataset}?", abort=True, err=True)
    session.client.delete_dataset(dataset)
    if session.json:
        return write_json({"deleted": dataset})
    session.note(f"deleted {dataset}")


def show_report(session: Session, report: DatasetReport) -> None:
    """A dataset's rows, labels and first problems."""
    counts = ", ".join(f"{label} {count}" for label, count in sorted(report.label_counts.items()))
    rows = [
        ("rows", f"{report.rows} ({report.valid_rows} valid)"),
        ("columns", ", ".join(report.columns)),
        ("labels", counts),
        ("problems", str(report.problem_count)),
    ]
    session.out.print(facts((name, value) for name, value in rows if value))
    if not report.problems:
        return
    shown = [
        [str(p.row) if p.row else "all", p.column, p.reason, p.message]
        for p in report.problems[:PROBLEMS_SHOWN]
    ]
    session.out.print(table(["row>", "column", "reason", "problem"], shown))
    if report.problem_count > len(shown):
        session.note(f"and {report.problem_count - len(shown)} more")


def _facts(dataset: Dataset) -> list[tuple[str, str]]:
    rows = [
        ("name", dataset.name),
        ("display name", dataset.display_name),
        ("format", str(dataset.format)),
        ("size", size(dataset.size_bytes)),
        ("digest", dataset.digest),
        ("created", when(dataset.create_time)),
    ]
    return [(name, value) for name, value in rows if value]
