"""`smile tables build | show`: rows of n-grams in place of the lower layers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from smile.backbone_config import BACKBONES_DEFAULT
from smile.cli.children import result_of
from smile.cli.command import Session, command
from smile.cli.output import Json, facts, size, to_json, write_json
from smile.errors import InvalidArgument
from smile.model.row_dtype import RowDtype
from smile.model.sources import BackboneSource, parse_sources
from smile.representations.manifest import FILES, TableManifest, check_digest, check_size, read

BUILDER = "smile.representations"
STEPS = {"count": "texts counted", "rows": "rows computed"}
UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base ** (power + 1)
    for suffix, base in (("iB", 1024), ("B", 1000))
    for power, letter in enumerate("KMGT")
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What table to build, and of what."""

    corpus: Annotated[
        list[Path], typer.Option(help="File or folder of .txt, .csv or .jsonl; may be repeated.")
    ]
    backbone: Annotated[
        str, typer.Option(help="A name of SMILE_BACKBONES, or 'name=dir:/path' and the like.")
    ] = "minilm"
    encoder: Annotated[
        Path | None,
        typer.Option(help="The backbone's local encoder. Default: the one that comes with SMILE."),
    ] = None
    budget: Annotated[str, typer.Option(help="Size at most, like 500MB or 2GiB.")] = "2GiB"
    dtype: Annotated[RowDtype, typer.Option(help="How rows are stored.")] = RowDtype.FLOAT16
    whole_files: Annotated[
        bool, typer.Option("--whole-files", help="A .txt file is one text, not one a line.")
    ] = False


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Tables of representations: build, show.", no_args_is_help=True)
    group.command("build")(command(build, platform=False))
    group.command("show")(command(show, platform=False))
    app.add_typer(group, name="tables")


def build(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="The table's new folder.")],
    options: TableOptions,
) -> None:
    """Build a table of the rows that a corpus needs most."""
    arguments = [
        f"--backbone={source_of(options.backbone)}",
        *([] if options.encoder is None else [f"--encoder={options.encoder}"]),
        f"--budget-bytes={bytes_of(options.budget)}",
        f"--dtype={options.dtype}",
        f"--output={folder}",
        f"--text-files={'whole' if options.whole_files else 'lines'}",
        "--corpus",
        *map(str, options.corpus),
    ]
    with _Bars.on(session) as bars:
        result_of(BUILDER, arguments, bars.show)
    _show(session, folder, read(folder))


def show(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="The table's folder.")],
    verify: Annotated[bool, typer.Option(help="Read and check every byte.")] = False,
) -> None:
    """Show what a table holds; fails if files are missing, cut off or, with --verify, changed."""
    stated = read(folder)
    for name in FILES:
        (check_digest if verify else check_size)(folder, name, stated.files[name])
    _show(session, folder, stated)
    if verify:
        session.note("every byte is as the manifest says")


def bytes_of(text: str) -> int:
    """A size as people write it: `500MB`, `2GiB`, `1000000`.

    Raises:
        InvalidArgument: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2] not in UNITS:
        raise InvalidArgument(f"a size must be like 500MB or 2GiB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def source_of(text: str) -> BackboneSource:
    """A backbone by its name or its source.

    Raises:
        InvalidArgument: there is no such name, or it is no source.
    """
    if "=" in text:
        return BackboneSource.parse(text)
    known = parse_sources(os.environ.get("SMILE_BACKBONES") or BACKBONES_DEFAULT)
    for source in known:
        if source.name == text:
            return source
    names = ", ".join(source.name for source in known)
    raise InvalidArgument(f"backbone must be one of {names} (SMILE_BACKBONES), got {text!r}")


def _show(session: Session, folder: Path, stated: TableManifest) -> None:
    if session.json:
        return write_json({**_fields(stated), "digest": stated.digest, "bytes": stated.bytes})
    origin, corpus = stated.origin, stated.corpus
    share = corpus.covered / corpus.tokens if corpus.tokens else 0.0
    rows = [
        ("table", str(folder)),
        ("digest", stated.digest),
        ("domain", stated.domain),
        ("backbone", f"{origin.backbone} ({origin.backbone_digest[:12]})"),
        ("local encoder", f"{origin.encoder_digest[:12]}, boundary {origin.boundary}"),
        (
            "computed",
            f"in {origin.precision} by kernels {origin.kernels}" if origin.precision else "",
        ),
        ("rows", f"{stated.rows:,} of {corpus.ngrams:,} n-grams, {stated.dtype}"),
        ("size", size(stated.bytes)),
        ("corpus", f"{corpus.texts:,} texts, {corpus.tokens:,} tokens ({corpus.digest[:12]})"),
        ("covered", f"{share:.1%} of the corpus's tokens"),
    ]
    session.out.print(facts(rows))


def _fields(stated: TableManifest) -> dict[str, Json]:
    fields = to_json(stated)
    assert isinstance(fields, dict)
    return fields


class _Bars:
    """A bar a step on a terminal; nothing elsewhere."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    @classmethod
    @contextmanager
    def on(cls, session: Session) -> Iterator[_Bars]:
        """Shown while entered."""
        if session.json or not session.err.is_terminal:
            yield cls(None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=session.err, transient=True) as progress:
            yield cls(progress)

    def show(self, said: Mapping[str, Json]) -> None:
        """How far the builder is."""
        step, done, total = said.get("step"), said.get("done"), said.get("total")
        if self._progress is None or not isinstance(step, str) or not isinstance(done, int):
            return
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(STEPS.get(step, step))
        known = total if isinstance(total, int) and total else None
        self._progress.update(self._tasks[step], completed=done, total=known)
