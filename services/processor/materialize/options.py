"""Where the stand-ins for backbones' lower layers lie, and what they learn from traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smile import limits
from smile.errors import InvalidArgument
from smile.names import check_id
from smile.representations.traffic import CountRules

INCLUDED = Path("included")


@dataclass(frozen=True, slots=True)
class StandInPlace:
    """What stands in for the lower layers of one backbone.

    Attributes:
        encoder: File of the local encoder; `INCLUDED`: the one that comes with SMILE.
        table: Folder of a table's snapshot; None: all rows are computed, or learned.
    """

    encoder: Path
    table: Path | None = None


@dataclass(frozen=True, slots=True)
class LearningOptions:
    """What is learned from traffic.

    Attributes:
        on: Whether anything is.
        bytes_max: Memory for rows beside the table's.
        rounds_s: Seconds from one round of learning to the next.
        rules: What is counted and what may be told.
    """

    on: bool = True
    bytes_max: int = 64 * limits.MIB
    rounds_s: float = 5.0
    rules: CountRules = field(default_factory=CountRules)


def parse_places(text: str, *words: Path) -> Mapping[str, Path]:
    """Reads `backbone=/path,...`: paths by backbone; none where the text is empty. A place may be
    one of `words`, too.

    Raises:
        InvalidName: a name is not a resource id.
        InvalidArgument: an entry is malformed, or repeats a backbone.
    """
    found: dict[str, Path] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, equals, place = entry.partition("=")
        if not equals or not (Path(place).is_absolute() or Path(place) in words):
            told = "".join(f" or 'backbone={word}'" for word in words)
            raise InvalidArgument(f"expected 'backbone=/absolute/path'{told}, got {entry!r}")
        if check_id(name, "backbone") in found:
            raise InvalidArgument(f"backbone '{name}' repeats")
        found[name] = Path(place)
    return found
