"""Where local encoders and their tables are found: what settings of processor and trainer say.

No torch, so that whoever only accepts work may ask whether it can be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smile.artifacts import ENCODER_FILE
from smile.errors import FailedPrecondition, InvalidArgument
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.included import included_for
from smile.names import ArtifactName, check_id

INCLUDED = Path("included")
ARTIFACTS = "artifacts/"


@dataclass(frozen=True, slots=True)
class StandInPlace:
    """What stands in for the lower layers of one backbone.

    Attributes:
        encoder: File of the local encoder; `INCLUDED`: the one that comes with SMILE.
        table: Folder of a table's snapshot; None: all rows are computed, or learned.
        domains: Folder of its domains, each in a folder of its name; None: there are none.
    """

    encoder: Path
    table: Path | None = None
    domains: Path | None = None


def parse_places(
    text: str, *words: Path, cache: Path | None = None, file: str = ""
) -> Mapping[str, Path]:
    """Reads `backbone=/path,...`: paths by backbone; none where the text is empty. A place may be
    one of `words`, too, or `artifacts/{artifact}`.

    Args:
        cache: Where artifacts of storage's catalogue lie once they are fetched; None: a place can
            be none.
        file: What of an artifact is meant; empty: its folder.

    Raises:
        InvalidName: a name is not a resource id.
        InvalidArgument: an entry is malformed, or repeats a backbone.
    """
    found: dict[str, Path] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, equals, place = entry.partition("=")
        stored = cache is not None and place.startswith(ARTIFACTS)
        if not equals or not (stored or Path(place).is_absolute() or Path(place) in words):
            told = "".join(f" or 'backbone={word}'" for word in words)
            told += "" if cache is None else f" or 'backbone={ARTIFACTS}id'"
            raise InvalidArgument(f"expected 'backbone=/absolute/path'{told}, got {entry!r}")
        if check_id(name, "backbone") in found:
            raise InvalidArgument(f"backbone '{name}' repeats")
        if stored and cache is not None:
            found[name] = cache / ArtifactName.parse(place).artifact / file
        else:
            found[name] = Path(place)
    return found


def artifacts_in(*texts: str) -> tuple[ArtifactName, ...]:
    """The artifacts that settings name, which `parse_places` has read."""
    places = (entry.strip().partition("=")[2] for text in texts for entry in text.split(","))
    names = dict.fromkeys(place for place in places if place.startswith(ARTIFACTS))
    return tuple(map(ArtifactName.parse, names))


def parse_stand_ins(
    skip: str, tables: str, cache: Path, domains: str = ""
) -> Mapping[str, StandInPlace]:
    """Stand-ins by backbone, from the settings of these names; for `cache` see `parse_places`.

    Raises:
        InvalidName, InvalidArgument: as `parse_places`, or a table or domains are of a backbone
            that has no local encoder.
    """
    encoders = parse_places(skip, INCLUDED, cache=cache, file=ENCODER_FILE)
    tables_at = parse_places(tables, cache=cache)
    domains_at = parse_places(domains, cache=cache)
    for places, what in ((tables_at, "a table"), (domains_at, "domains")):
        if unknown := sorted(places.keys() - encoders.keys()):
            raise InvalidArgument(f"backbone '{unknown[0]}' has {what} and no local encoder")
    return {
        name: StandInPlace(path, tables_at.get(name), domains_at.get(name))
        for name, path in encoders.items()
    }


def encoder_file(place: Path, backbone: str, digest: str) -> EncoderFile:
    """A backbone's local encoder, from its file or as it comes with SMILE.

    Args:
        backbone: Its name, to tell.
        digest: Of the backbone.

    Raises:
        FailedPrecondition: there is none, or it is for another backbone.
        DataCorrupted: it is no local encoder's file.
    """
    if place != INCLUDED:
        found = artifact.read(place)
        found.check(digest)
        return found
    included = included_for(digest)
    if included is None:
        raise FailedPrecondition(
            f"no local encoder for backbone '{backbone}' comes with SMILE; distil one with "
            f"`smile backbones distill`",
            reason="NOT_MATERIALIZED",
        )
    return included[1]
