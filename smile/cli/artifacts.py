"""For operators: `smile artifacts push | pull | list | rm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smile.artifacts import Artifact
from smile.cli.command import Session, command
from smile.cli.datasets import bar
from smile.cli.output import facts, short, size, table, when, write_json

ArtifactArgument = Annotated[str, typer.Argument(help="Id of the artifact.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="For operators: local encoders, tables and domains that storage keeps for processors.",
        no_args_is_help=True,
    )
    group.command("push")(command(push))
    group.command("pull")(command(pull))
    group.command("list")(command(list_))
    group.command("rm")(command(remove))
    app.add_typer(group, name="artifacts")


def push(
    session: Session,
    artifact: ArtifactArgument,
    path: Annotated[
        Path,
        typer.Argument(help="A local encoder's file, a table's folder, or a folder of domains."),
    ],
    note: Annotated[str, typer.Option(help="Text for people.")] = "",
) -> None:
    """Store a local encoder, a table or domains, for good. Files that are there are not sent."""
    with bar(session, "storing") as progress:
        made = session.client.push_artifact(artifact, path, note=note, on_progress=progress)
    if session.json:
        return write_json(made)
    session.out.print(facts(_facts(made)))


def pull(
    session: Session,
    artifact: ArtifactArgument,
    path: Annotated[Path, typer.Argument(help="Where to; new.")],
) -> None:
    """Fetch an artifact: a local encoder's file, a table's folder, or domains."""
    found = session.client.pull_artifact(artifact, path)
    if session.json:
        return write_json(found)
    session.note(f"{found.kind} {short(found.name)} is at {path}")


def list_(session: Session) -> None:
    """List artifacts."""
    found = list(session.client.artifacts())
    if session.json:
        return write_json({"artifacts": found})
    rows = [
        [
            short(a.name), str(a.kind), a.backbone, a.backbone_digest[:12], a.encoder_digest[:12],
            str(a.boundary), f"{a.rows:,}" if a.rows else "", size(a.size_bytes),
            when(a.create_time), a.note,
        ]
        for a in found
    ]  # fmt: skip
    columns = ["artifact", "kind", "backbone", "digest", "encoder", "boundary>", "rows>", "size>"]
    session.out.print(table([*columns, "created", "note"], rows))


def remove(session: Session, artifact: ArtifactArgument) -> None:
    """Delete an artifact. Who has fetched it goes on with it."""
    session.client.delete_artifact(artifact)
    session.note(f"deleted {artifact}")


def _facts(artifact: Artifact) -> list[tuple[str, str]]:
    return [
        ("artifact", artifact.name),
        ("kind", str(artifact.kind)),
        ("backbone", f"{artifact.backbone} ({artifact.backbone_digest})"),
        ("local encoder", artifact.encoder_digest),
        ("boundary", str(artifact.boundary)),
        ("rows", f"{artifact.rows:,}" if artifact.rows else ""),
        ("size", size(artifact.size_bytes)),
        ("digest", artifact.digest),
    ]
