"""Where domains lie: in a folder, a folder of its name each, with its table and its local encoder.

Standard library only, so that the command line can list them without anything else.
"""

from __future__ import annotations

from pathlib import Path

from smile.errors import FailedPrecondition
from smile.representations.manifest import MANIFEST_FILE

TABLE = "table"
ENCODER = "encoder.safetensors"  # begun as by its children; processors do without
CURVE = "curve.json"


def domains_in(folder: Path) -> tuple[tuple[str, Path], ...]:
    """Names and places of the domains in a folder, by name; those that are being made are not
    among them.

    Raises:
        FailedPrecondition: there is no such folder.
    """
    if not folder.is_dir():
        raise FailedPrecondition(f"there is no folder of domains at {folder}")
    return tuple(
        (place.name, place)
        for place in sorted(folder.iterdir())
        if not place.name.startswith(".") and (place / TABLE / MANIFEST_FILE).is_file()
    )
