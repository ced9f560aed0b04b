"""What lies at a path: a local encoder's file, the folder of a table's snapshot, or domains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from smile.artifacts import ENCODER_FILE, Artifact, ArtifactKind
from smile.errors import DataCorrupted, InvalidArgument
from smile.representations import manifest, places
from smile.representations.manifest import GENERAL, TableManifest

Files: TypeAlias = dict[str, Path]  # where each of an artifact's files lies, by its name there


def described(name: str, path: Path, note: str) -> tuple[Artifact, Files]:
    """The manifest of what lies at `path`, without its files, and these; all are checked.

    Raises:
        InvalidArgument: there is nothing that could be one.
        DataCorrupted: it is damaged.
    """
    if path.is_file():
        return _encoder(name, path, note)
    if path.is_dir():
        domains = places.domains_in(path)
        return _domains(name, domains, note) if domains else _table(name, path, note)
    raise InvalidArgument(
        f"no local encoder's file, no table's folder and no folder of domains at {path}",
        reason="FILE_UNREADABLE",
    )


def _encoder(name: str, path: Path, note: str) -> tuple[Artifact, Files]:
    from smile.model.skip import artifact as encoders  # noqa: PLC0415 -- numpy, seldom asked for

    file = encoders.read(path)
    facts = file.facts
    made = Artifact(
        name=name,
        kind=ArtifactKind.ENCODER,
        files=(),
        backbone=facts.backbone,
        backbone_digest=facts.backbone_digest,
        encoder_digest=file.digest,
        boundary=facts.form.boundary,
        note=note,
    )
    return made, {ENCODER_FILE: path}


def _table(name: str, folder: Path, note: str) -> tuple[Artifact, Files]:
    stated, files = _checked(folder)
    origin = stated.origin
    made = Artifact(
        name=name,
        kind=ArtifactKind.TABLE,
        files=(),
        backbone=origin.backbone,
        backbone_digest=origin.backbone_digest,
        encoder_digest=origin.encoder_digest,
        boundary=origin.boundary,
        rows=stated.rows,
        note=note,
    )
    return made, files


def _domains(name: str, domains: Sequence[tuple[str, Path]], note: str) -> tuple[Artifact, Files]:
    """A domain is its table, and its local encoder for those that shall begin as it."""
    files, stated = Files(), dict[str, TableManifest]()
    for domain, folder in domains:
        stated[domain], table = _checked(folder / places.TABLE)
        files |= {f"{domain}/{places.TABLE}/{file}": path for file, path in table.items()}
        for file in (places.ENCODER, places.CURVE):
            if (folder / file).is_file():
                files[f"{domain}/{file}"] = folder / file
        if stated[domain].domain != domain:
            raise DataCorrupted(f"{folder} has domain '{stated[domain].domain}', not '{domain}'")
    for domain, one in stated.items():
        if one.parent != GENERAL and one.parent not in stated:
            raise InvalidArgument(
                f"domain '{domain}' needs its parent '{one.parent}', which is not beside it"
            )
    roots = [one for one in stated.values() if one.parent == GENERAL]
    made = _of_one_backbone(name, roots)
    return replace(made, rows=sum(one.rows for one in stated.values()), note=note), files


def _of_one_backbone(name: str, roots: Sequence[TableManifest]) -> Artifact:
    """What domains right below the general rows have in common. Raises `InvalidArgument`."""
    if not roots:
        raise DataCorrupted("every domain is below another: none is right below the general rows")
    first = roots[0]
    for one in roots:
        if (one.origin.backbone_digest, one.parent_encoder) != (
            first.origin.backbone_digest,
            first.parent_encoder,
        ):
            raise InvalidArgument(
                f"domains '{first.domain}' and '{one.domain}' are of different backbones or local "
                "encoders"
            )
    return Artifact(
        name=name,
        kind=ArtifactKind.DOMAINS,
        files=(),
        backbone=first.origin.backbone,
        backbone_digest=first.origin.backbone_digest,
        encoder_digest=first.parent_encoder,
        boundary=first.origin.boundary,
    )


def _checked(folder: Path) -> tuple[TableManifest, Files]:
    """A table's manifest, and its files, whose digests are checked."""
    stated = manifest.read(folder)
    for file, facts in stated.files.items():
        manifest.check_digest(folder, file, facts)
    names = (manifest.MANIFEST_FILE, *sorted(stated.files))
    return stated, {file: folder / file for file in names}


def make_folder_of(path: Path) -> None:
    """Before a file is put at `path`: those of domains lie in folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
