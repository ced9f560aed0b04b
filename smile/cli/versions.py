"""`smile versions list | show | download | upload | diff | delete | undelete` and `smile alias`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smile.cli import history
from smile.cli.command import Session, command
from smile.cli.datasets import bar
from smile.cli.jobs import show_summary
from smile.cli.output import facts, metric_rows, pointed, short, size, table, when, write_json
from smile.resources import Vplm

VplmArgument = Annotated[str, typer.Argument(help="Id of the vPLM.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("alias")(command(alias))
    group = typer.Typer(help="Versions of a vPLM.", no_args_is_help=True)
    group.command("list")(command(list_))
    group.command("show")(command(show))
    group.command("download")(command(download))
    group.command("upload")(command(upload))
    group.command("diff")(command(history.diff))
    group.command("delete")(command(history.delete_version))
    group.command("undelete")(command(history.undelete_version))
    app.add_typer(group, name="versions")


def alias(
    session: Session,
    vplm: VplmArgument,
    name: Annotated[str, typer.Argument(help="Alias; 'serving' is what inference uses.")],
    version: Annotated[int, typer.Argument(help="Version number it shall point to.")],
    canary: Annotated[
        int | None, typer.Option(help="Another version that answers a share of the requests.")
    ] = None,
    weight: Annotated[float | None, typer.Option(help="That share, 0 to 1.")] = None,
) -> None:
    """Point an alias to a version, or split its requests between two. Naming one alone ends a
    split."""
    moved = session.client.set_alias(vplm, name, version, canary=canary, weight=weight)
    if session.json:
        return write_json(moved)
    session.note(f"{moved.name}: {name} is version {pointed(moved, name)}")


def list_(
    session: Session,
    vplm: VplmArgument,
    deleted: Annotated[bool, typer.Option(help="Only those that can be had back.")] = False,
) -> None:
    """List a vPLM's versions, or those that were deleted and can be had back, newest first."""
    owner = session.client.vplm(vplm)
    every = session.client.versions(vplm, show_deleted=deleted)
    found = [one for one in every if not deleted or one.delete_time is not None]
    if session.json:
        return write_json({"versions": found})
    rows = [
        [
            str(v.number),
            ", ".join(_aliases_of(owner, v.number)),
            str(v.origin),
            size(v.size_bytes),
            v.digest[:12],
            ", ".join(f"{name} {value}" for name, value in metric_rows(v.metrics)[:3]),
            when(v.create_time),
            *([when(v.delete_time), when(v.purge_time)] if deleted else []),
        ]
        for v in found
    ]
    columns = ["version>", "aliases", "origin", "size>", "digest", "metrics", "created"]
    session.out.print(table([*columns, *(["deleted", "until"] if deleted else [])], rows))


def show(
    session: Session,
    vplm: VplmArgument,
    version: Annotated[int, typer.Argument(help="Version number.")],
) -> None:
    """Show one version: what it was trained on and with, and how good it is."""
    found = session.client.version(vplm, version)
    if session.json:
        return write_json(found)
    rows = [
        ("version", found.name),
        ("aliases", ", ".join(_aliases_of(session.client.vplm(vplm), found.number))),
        ("origin", str(found.origin)),
        ("job", found.training_job),
        ("size", size(found.size_bytes)),
        ("digest", found.digest),
        ("created", when(found.create_time)),
    ]
    session.out.print(facts(rows))
    if found.metrics:
        session.out.print(table(["metric", "value>"], metric_rows(found.metrics)))
    if found.training is not None:
        show_summary(session, found.training)


def _aliases_of(vplm: Vplm, number: int) -> list[str]:
    """The aliases that point to a version, with its share where there are two."""
    found = []
    for alias, first in sorted(vplm.aliases.items()):
        canary = vplm.canaries.get(alias)
        if number == first:
            found.append(alias if canary is None else f"{alias} {1 - canary.weight:.4g}")
        elif canary is not None and canary.version == number:
            found.append(f"{alias} {canary.weight:.4g}")
    return found


def download(
    session: Session,
    vplm: VplmArgument,
    file: Annotated[Path, typer.Argument(help="Where to write the safetensors bytes.")],
    version: Annotated[
        int | None, typer.Option(help="Version number. Default: the one that serves.")
    ] = None,
) -> None:
    """Write a version's weights to a file, checked against their digest."""
    got = session.client.download_version(vplm, file, number=version)
    if session.json:
        return write_json(got)
    session.note(f"wrote {got.name} ({size(got.size_bytes)}) to {file}")


def upload(
    session: Session,
    vplm: VplmArgument,
    file: Annotated[Path, typer.Argument(help="Safetensors with the vPLM's tensors.")],
    note: Annotated[str, typer.Option(help="Text for people.")] = "",
) -> None:
    """Store weights of one's own as one more version; no alias points to it yet."""
    with bar(session, f"uploading {file.name}") as on_progress:
        stored = session.client.upload_version(vplm, file, note=note, on_progress=on_progress)
    if session.json:
        return write_json(stored)
    session.note(f"stored {stored.name}; `smile alias {short(vplm)} serving {stored.number}`")
