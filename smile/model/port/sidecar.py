"""`smile.json`: what our own exports say of themselves that another library's files cannot.

Which backbone, to the digest; how the head pools; in which precision numbers were stored. A folder
without it can be imported all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from smile.errors import InvalidArgument
from smile.formats import ExportFormat
from smile.model.port.files import Config, write_json
from smile.model.port.values import ExportedModule, Target, malformed
from smile.model.specs import DType, HeadSpec, PetKind, PetSpec, Pooling, Projection, Task

FILE = "smile.json"
FORMAT = "smile.vplm.v1"


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is read back."""

    format: ExportFormat
    pet: PetSpec
    head: HeadSpec
    dtype: DType
    backbone_digest: str


def write(folder: Path, module: ExportedModule, made: ExportFormat) -> None:
    spec = module.spec
    write_json(
        folder / FILE,
        {
            "schema": FORMAT,
            "format": made,
            "version": module.name,
            "backbone": spec.backbone,
            "backbone_digest": spec.backbone_digest,
            "pet": {
                "kind": spec.pet.kind,
                "first_layer": spec.pet.first_layer,
                "rank": spec.pet.rank,
                "alpha": spec.pet.alpha,
                "targets": list(spec.pet.targets),
                "density": spec.pet.density,
            },
            "task": spec.head.task,
            "pooling": spec.head.pooling,
            "labels": list(spec.head.labels),
            "precision": spec.dtype,
        },
    )


def read(folder: Path) -> Sidecar | None:
    """What a folder of ours says of itself; None for others'.

    Raises:
        InvalidArgument: the file is not as `write` writes it.
    """
    if not (folder / FILE).is_file():
        return None
    config = Config.read(folder / FILE)
    raw = config.raw
    if raw.get("schema") != FORMAT:
        raise config.wrong("schema", repr(FORMAT))
    labels = raw.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise config.wrong("labels", "a list of texts")
    try:
        head = HeadSpec(Task(config.text("task")), tuple(labels), Pooling(config.text("pooling")))
        return Sidecar(
            ExportFormat(config.text("format")),
            _pet(config.part("pet")),
            head,
            DType(config.text("precision")),
            config.text("backbone_digest"),
        )
    except ValueError as error:
        raise malformed(f"{config.file}: {error}") from error


def _pet(config: Config) -> PetSpec:
    """Raises `ValueError` for a kind or a projection that is unknown."""
    first, targets = config.raw.get("first_layer"), config.raw.get("targets")
    if first is not None and type(first) is not int:
        raise config.wrong("first_layer", "an integer or null")
    if not isinstance(targets, list):
        raise config.wrong("targets", "a list")
    return PetSpec(
        PetKind(config.text("kind")),
        first,
        config.integer("rank", least=0),
        config.number("alpha"),
        tuple(Projection(target) for target in targets),
        config.number("density"),
    )


def agreed(target: Target, sidecar: Sidecar | None) -> Target:
    """The target, with what the sidecar says where the owner says nothing.

    Raises:
        InvalidArgument: the folder was exported from a vPLM on another backbone.
    """
    if sidecar is None:
        return target
    if sidecar.backbone_digest != target.digest:
        raise InvalidArgument(
            f"the folder was exported from a vPLM on the backbone with digest "
            f"{sidecar.backbone_digest}; '{target.backbone}' has {target.digest}",
            reason="BACKBONE_MISMATCH",
        )
    return replace(
        target,
        labels=target.labels or sidecar.head.labels,
        pooling=target.pooling or sidecar.head.pooling,
        precision=target.precision or sidecar.dtype,
    )
