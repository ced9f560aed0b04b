"""Which tables stand behind a domain: its own, its parent's, and so on, as their manifests tell.

Standard library only, so that whoever only accepts work may ask whether it can be done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from smile.errors import DataCorrupted, FailedPrecondition
from smile.representations import manifest, places
from smile.representations.manifest import GENERAL, Origin, TableManifest


@dataclass(frozen=True, slots=True)
class Level:
    """One domain on the way up.

    Attributes:
        folder: Of its table.
        stated: The table's manifest.
    """

    folder: Path
    stated: TableManifest


def lineage(folder: Path, domain: str, general: Origin) -> tuple[Level, ...]:
    """A domain of a folder, its parent, and so on; `general` itself is not among them. Rows are not
    looked at.

    Args:
        general: Whose the general rows are.

    Raises:
        FailedPrecondition: there is no such folder, the domain or one that it needs is not in it
            (DOMAIN_NOT_SERVED), or `check_over` refuses one.
        DataCorrupted: a manifest is none or another domain's, or a domain is its own ancestor.
        OSError: the folder cannot be read.
    """
    found = dict(places.domains_in(folder))
    way: dict[str, Level] = {}
    name, why = domain, f"there are {', '.join((GENERAL, *found))}"
    while name != GENERAL:
        if name not in found:
            raise FailedPrecondition(
                f"there is no domain '{name}': {why}", reason="DOMAIN_NOT_SERVED"
            )
        if name in way:
            raise DataCorrupted(f"domain '{name}' is its own ancestor")
        place = found[name] / places.TABLE
        stated = manifest.read(place)
        check_name(stated, name, place)
        way[name] = Level(place, stated)
        name, why = stated.parent, f"it is the parent of '{name}'"
    levels = tuple(way.values())
    for level, parent in zip(levels, (*levels[1:], None), strict=True):
        check_over(level.stated, None if parent is None else parent.stated, general)
    return levels


def check_name(stated: TableManifest, name: str, place: Path) -> None:
    """Raises DataCorrupted if the table that lies where that domain's is expected is another's."""
    if stated.domain != name:
        raise DataCorrupted(f"{place} has domain '{stated.domain}', not '{name}'")


def check_over(stated: TableManifest, parent: TableManifest | None, general: Origin) -> None:
    """Whether a domain's table was made over just these rows of its parent.

    Args:
        parent: None: the general rows, which are of `general`.

    Raises:
        FailedPrecondition: it is for another backbone or boundary, or for other rows of its parent.
    """
    stated.origin.check(replace(general, encoder_digest=stated.origin.encoder_digest))
    over = general if parent is None else parent.origin
    if stated.parent_encoder != over.encoder_digest:
        raise FailedPrecondition(
            f"domain '{stated.domain}' differs from rows of local encoder {stated.parent_encoder}, "
            f"those of '{stated.parent}' are of {over.encoder_digest}",
            reason="ENCODER_MISMATCH",
        )
    assert stated.delta is not None, "checked when it was read"
    made_over, there = stated.delta.parent_table, "" if parent is None else parent.digest
    if made_over != there:
        raise FailedPrecondition(
            f"domain '{stated.domain}' was made over '{stated.parent}' with digest {made_over}, "
            f"here is {there}: create it again",
            reason="DOMAIN_MISMATCH",
        )
