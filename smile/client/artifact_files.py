"""What lies at a path: a local encoder's file, or the folder of a table's snapshot."""

from __future__ import annotations

from pathlib import Path

from smile.artifacts import Artifact, ArtifactKind
from smile.errors import InvalidArgument


def described(name: str, path: Path, note: str) -> tuple[Artifact, list[Path]]:
    """The manifest of what lies at `path`, without its files, and these; all are checked.

    Raises:
        InvalidArgument: there is nothing that could be one.
        DataCorrupted: it is damaged.
    """
    if path.is_dir():
        return _table(name, path, note)
    if not path.is_file():
        raise InvalidArgument(
            f"no local encoder's file and no table's folder at {path}", reason="FILE_UNREADABLE"
        )
    return _encoder(name, path, note)


def _encoder(name: str, path: Path, note: str) -> tuple[Artifact, list[Path]]:
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
    return made, [path]


def _table(name: str, folder: Path, note: str) -> tuple[Artifact, list[Path]]:
    from smile.representations import manifest  # noqa: PLC0415 -- seldom asked for

    stated = manifest.read(folder)
    for file, facts in stated.files.items():
        manifest.check_digest(folder, file, facts)
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
    return made, [folder / file for file in (manifest.MANIFEST_FILE, *sorted(stated.files))]
