"""Where domains lie: in a folder, a folder of its name each, with its table and its local encoder.

A domain goes as it came, by one renaming: killed at any moment, a removal leaves all of it or what
nobody takes for a domain, and the same removal goes on. Standard library only, so that the command
line can do with domains without anything else.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from smile.errors import FailedPrecondition, NotFound
from smile.names import check_id
from smile.representations.manifest import MANIFEST_FILE, read

TABLE = "table"
ENCODER = "encoder.safetensors"  # begun as by its children; processors do without
CURVE = "curve.json"
REMOVED_SUFFIX = ".removed"


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


def check_removable(folder: Path, name: str) -> None:
    """Whether a domain is there, or the rest of one whose removal broke off, and none is under it.

    Raises:
        InvalidName: `name` is no resource id.
        NotFound: there is nothing to remove.
        FailedPrecondition: there is no such folder, or other domains have it as their parent.
        DataCorrupted: another domain does not say what its parent is.
    """
    check_id(name, "domain")
    found = dict(domains_in(folder))
    if name not in found:
        if os.path.lexists(_removed(folder, name)):
            return
        raise NotFound(f"no domain '{name}' at {folder}; there are: {', '.join(found) or 'none'}")
    others = [(one, read(place / TABLE)) for one, place in found.items() if one != name]
    if under := [one for one, stated in others if stated.parent == name]:
        raise FailedPrecondition(
            f"domain '{name}' is the parent of {', '.join(under)}, which cannot be used without "
            f"it: delete those first"
        )


def remove(folder: Path, name: str) -> None:
    """Removes a domain, table and local encoder.

    Raises:
        FailedPrecondition: the file system refuses.
        SmileError: as `check_removable`.
    """
    check_removable(folder, name)
    removed = _removed(folder, name)
    try:
        _remove_all(removed)  # of an earlier removal that broke off
        if name in dict(domains_in(folder)):
            (folder / name).rename(removed)
            _flush(folder)  # else a power cut could take files and leave the name
            _remove_all(removed)
    except OSError as error:
        raise FailedPrecondition(f"{folder / name} cannot be removed: {error}") from error


def _removed(folder: Path, name: str) -> Path:
    return folder / f".{name}{REMOVED_SUFFIX}"


def _remove_all(place: Path) -> None:
    if place.is_symlink():
        place.unlink()  # what it points to is somebody's own
    elif place.exists():
        shutil.rmtree(place)


def _flush(folder: Path) -> None:
    """Make a renaming in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
