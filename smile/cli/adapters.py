"""`smile adapters list | show | publish | delete`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from smile.cli.command import Session, command
from smile.cli.output import facts, metric_rows, short, size, table, when, write_json
from smile.cli.porting import BackbonePath
from smile.cli.vplms import pet_text
from smile.client.options import AdapterOptions
from smile.model.specs import DType, Pooling
from smile.resources import PublicAdapter

AdapterArgument = Annotated[str, typer.Argument(help="Id of the public adapter.")]


@dataclass(frozen=True, slots=True)
class AdapterTexts:
    """What is said of an adapter."""

    display_name: Annotated[str, typer.Option(help="Text for people.")] = ""
    description: Annotated[str, typer.Option(help="What it was trained for, and on what.")] = ""
    license: Annotated[str, typer.Option(help="Terms of use, e.g. Apache-2.0.")] = ""
    source: Annotated[str, typer.Option(help="Where it came from, e.g. a URL.")] = ""
    tag: Annotated[
        list[str] | None, typer.Option(help="A key=value pair; may be given several times.")
    ] = None


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """How to read a folder."""

    backbone: Annotated[str | None, typer.Option(help="Backbone it was trained on.")] = None
    backbone_path: BackbonePath = None
    labels: Annotated[
        str | None, typer.Option(help="Labels in class order, by comma. Default: the folder's.")
    ] = None
    pooling: Annotated[Pooling | None, typer.Option(help="Of an embedding.")] = None
    precision: Annotated[
        DType | None, typer.Option(help="Stored. Default: float16 where that loses nothing.")
    ] = None


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Modules that everybody may begin with.", no_args_is_help=True)
    group.command("list")(command(list_))
    group.command("show")(command(show))
    group.command("publish")(command(publish))
    group.command("delete")(command(delete))
    app.add_typer(group, name="adapters")


def list_(session: Session) -> None:
    """List the public adapters."""
    found = list(session.client.adapters())
    if session.json:
        return write_json({"adapters": found})
    rows = [
        [
            short(a.name), a.spec.backbone, pet_text(a.spec.pet), str(a.spec.head.task),
            str(len(a.spec.head.labels) or ""), size(a.size_bytes), a.license, a.display_name,
        ]
        for a in found
    ]  # fmt: skip
    columns = ["adapter", "backbone", "pet", "task", "labels>", "size>", "license", "about"]
    session.out.print(table(columns, rows))


def show(session: Session, adapter: AdapterArgument) -> None:
    """Show one public adapter."""
    found = session.client.adapter(adapter)
    if session.json:
        return write_json(found)
    session.out.print(facts(_facts(found)))


def publish(
    session: Session,
    adapter: AdapterArgument,
    texts: AdapterTexts,
    folder: FolderOptions,
    path: Annotated[
        Path | None, typer.Argument(help="Folder of PEFT, AdapterHub, Hugging Face, SMILE.")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="A tenant's version instead: tenants/.../vplms/.../versions/N."),
    ] = None,
) -> None:
    """Offer a module to every tenant (operator). A version must be offered by its tenant, who
    points the alias `public` to it."""
    options = _options(texts)
    if version is not None:
        if path is not None or folder != FolderOptions():
            raise typer.BadParameter("give a folder or --version, not both")
        made = session.client.publish_version(adapter, version, **options)
    elif path is None or folder.backbone is None:
        raise typer.BadParameter("give a folder with --backbone, or --version")
    else:
        _read_with(options, folder)
        made = session.client.publish_adapter(adapter, path, backbone=folder.backbone, **options)
    if session.json:
        return write_json(made)
    session.note(
        f"published {made.name}: {pet_text(made.spec.pet)}, {size(made.size_bytes)}; "
        f"`smile vplms create NAME --from-adapter {short(made.name)}`"
    )


def delete(
    session: Session,
    adapter: AdapterArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Offer an adapter no more (operator). What was made of it stays."""
    if not yes and not session.json:
        typer.confirm(f"Offer {adapter} no more?", abort=True, err=True)
    session.client.delete_adapter(adapter)
    if session.json:
        return write_json({"deleted": adapter})
    session.note(f"deleted {adapter}")


def _options(texts: AdapterTexts) -> AdapterOptions:
    tags: dict[str, str] = {}
    for pair in texts.tag or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--tag is key=value, got {pair!r}")
        tags[key] = value
    return AdapterOptions(
        display_name=texts.display_name,
        description=texts.description,
        license=texts.license,
        source=texts.source,
        tags=tags,
    )


def _read_with(options: AdapterOptions, folder: FolderOptions) -> None:
    if folder.backbone_path is not None:
        options["backbone_path"] = folder.backbone_path
    if folder.labels is not None:
        options["labels"] = [label.strip() for label in folder.labels.split(",")]
    if folder.pooling is not None:
        options["pooling"] = folder.pooling
    if folder.precision is not None:
        options["precision"] = folder.precision


def _facts(adapter: PublicAdapter) -> list[tuple[str, str]]:
    head = adapter.spec.head
    rows = [
        ("name", adapter.name),
        ("display name", adapter.display_name),
        ("description", adapter.description),
        ("backbone", f"{adapter.spec.backbone} ({adapter.spec.backbone_digest[:12]})"),
        ("pet", pet_text(adapter.spec.pet)),
        ("task", str(head.task)),
        ("labels", ", ".join(head.labels)),
        ("license", adapter.license),
        ("source", adapter.source),
        ("size", size(adapter.size_bytes)),
        ("digest", adapter.digest),
        ("metrics", ", ".join(f"{name} {value}" for name, value in metric_rows(adapter.metrics))),
        ("tags", ", ".join(f"{key}={value}" for key, value in sorted(adapter.tags.items()))),
        ("published", when(adapter.create_time)),
    ]
    return [(name, value) for name, value in rows if value]
