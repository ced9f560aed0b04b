"""Local encoders that come with the installation, so that nobody has to distil one first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smile.model.skip.artifact import EncoderFile, read

FOLDER = Path(__file__).parent / "encoders"
SUFFIX = ".safetensors"


def included_paths() -> Iterator[Path]:
    """Their files, by name."""
    return iter(sorted(FOLDER.glob(f"*{SUFFIX}")))


def included_for(
    backbone_digest: str, boundary: int | None = None
) -> tuple[Path, EncoderFile] | None:
    """The one for a backbone, at a boundary if that is given; None if there is none.

    Raises:
        DataCorrupted: the installation's files are damaged.
    """
    for path in included_paths():
        found = read(path)
        if found.facts.backbone_digest != backbone_digest:
            continue
        if boundary is None or found.facts.form.boundary == boundary:
            return path, found
    return None
