"""What operators give processors and trainers besides modules, as storage's catalogue has it."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from datetime import datetime

ENCODER_FILE = "encoder.safetensors"


class ArtifactKind(enum.StrEnum):
    """Kinds of artifacts."""

    ENCODER = "encoder"  # a local encoder: one file, `ENCODER_FILE`
    TABLE = "table"  # a snapshot of a table of its rows: a folder
    DOMAINS = "domains"  # of one backbone: a folder with a folder of each


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file; `digest` is its SHA-256, hex. `name` is its path in the artifact's folder."""

    name: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact's manifest, which is created once.

    Attributes:
        name: `artifacts/{artifact}`.
        backbone, backbone_digest: What it is for.
        encoder_digest: Of the encoder, or of the one whose rows a table has, or that are the
            general ones of domains.
        boundary: First layer of the backbone that is still computed.
        rows: Of a table, or of all domains' tables.
        note: Text for people.
    """

    name: str
    kind: ArtifactKind
    files: tuple[ArtifactFile, ...]
    backbone: str
    backbone_digest: str
    encoder_digest: str
    boundary: int
    rows: int = 0
    note: str = ""
    create_time: datetime | None = None

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256, hex, over names and digests of all files: what it is, whatever it is called."""
        text = "".join(f"{file.name} {file.digest}\n" for file in sorted(self.files, key=_name))
        return hashlib.sha256(f"{self.kind}\n{text}".encode()).hexdigest()


def _name(file: ArtifactFile) -> str:
    return file.name
