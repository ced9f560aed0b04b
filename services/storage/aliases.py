"""Aliases: where they point, where they pointed before, and how to go back. Pure.

Every change of an alias's target is a move with a number. A rollback goes back to the target of the
move before the one in force, and is a move itself; a rollback after it goes back one further, as an
editor's undo does. The last `MOVES_REMEMBERED_MAX` moves of each alias are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.storage.records import VplmRecord, now
from smile.errors import FailedPrecondition, InvalidArgument, NotFound, QuotaExceeded
from smile.names import VersionName, VplmName
from smile.resources import AliasMoved, Canary

ALIASES_MAX = 16
MOVES_REMEMBERED_MAX = 20  # of one alias


@dataclass(frozen=True, slots=True)
class AliasMove:
    """Where an alias shall point: to one version, or with `canary` to two. With `etag`, a lost
    update is refused. `by` is who asks.
    """

    name: VplmName
    alias: str
    version: int
    request_id: str
    etag: str = ""
    canary: Canary | None = None
    by: str = ""

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version the alias shall point to."""
        return (self.version,) if self.canary is None else (self.version, self.canary.version)


@dataclass(frozen=True, slots=True)
class Rollback:
    """An alias to take back to where it pointed before. With `etag`, a lost update is refused."""

    name: VplmName
    alias: str
    request_id: str
    etag: str = ""
    by: str = ""


def check(record: VplmRecord, move: AliasMove) -> None:
    """Raise what `Catalog.set_alias` raises of a move."""
    for number in move.versions:
        if not record.has(number):
            raise _absent(VersionName(move.name, number))
    if move.canary is not None and move.canary.version == move.version:
        raise InvalidArgument(
            f"an alias splits its traffic between two versions, got version {move.version} twice",
            violations=[("canary.version", "must be another version than `version`")],
        )
    if move.alias not in record.aliases and len(record.aliases) >= ALIASES_MAX:
        raise QuotaExceeded(
            f"a vPLM has at most {ALIASES_MAX} aliases, and has {len(record.aliases)}",
            metadata={"limit": str(ALIASES_MAX), "value": str(len(record.aliases))},
        )


def moved(record: VplmRecord, move: AliasMove) -> dict[str, object]:
    """The record's fields after a move."""
    return _pointing(
        record, AliasMoved(move.alias, 0, move.version, move.canary, now(), by=move.by)
    )


def rolled_back(record: VplmRecord, rollback: Rollback) -> tuple[int, dict[str, object]]:
    """The version that an alias goes back to, and the record's fields after it.

    Raises:
        NotFound: there is no such alias.
        FailedPrecondition: no earlier target is remembered, or it is deleted.
    """
    alias = rollback.alias
    if alias not in record.aliases:
        raise no_alias(rollback.name, alias)
    earlier = _earlier(history(record, alias))
    if earlier is None:
        raise FailedPrecondition(
            f"'{alias}' of {rollback.name} has no earlier target that is remembered; the last "
            f"{MOVES_REMEMBERED_MAX} moves are",
            reason="ALIAS_HAS_NO_PAST",
        )
    canary = [earlier.canary.version] if earlier.canary else []
    for number in (earlier.version, *canary):
        if not record.has(number):
            raise FailedPrecondition(
                f"'{alias}' pointed to {VersionName(rollback.name, number)} before, which is "
                "deleted; undelete it, or point the alias to another version",
                reason="VERSION_DELETED",
                metadata={"version": str(number)},
            )
    back = replace(earlier, time=now(), by=rollback.by, restores=earlier.number)
    return earlier.version, _pointing(record, back)


def history(record: VplmRecord, alias: str) -> tuple[AliasMoved, ...]:
    """The moves of an alias that are remembered, oldest first; where it points now is the last's.

    Of a vPLM from before moves were kept: where it points is the first.
    """
    known = record.moves.get(alias, ())
    target = record.aliases.get(alias), record.canaries.get(alias)
    if target[0] is None or (known and known[-1].target == target):
        return known
    number = known[-1].number + 1 if known else 1
    return (*known, AliasMoved(alias, number, target[0], target[1], record.create_time))


def pointing_to(record: VplmRecord, number: int) -> list[str]:
    """The aliases that name a version, as their own or as their canary."""
    canaries = {alias for alias, held in record.canaries.items() if held.version == number}
    named = {alias for alias, version in record.aliases.items() if version == number}
    return sorted(named | canaries)


def no_alias(name: VplmName, alias: str) -> NotFound:
    """That a vPLM has no such alias."""
    return NotFound(
        f"{name} has no alias '{alias}'",
        reason="ALIAS_NOT_FOUND",
        metadata={"resource": str(name), "alias": alias},
    )


def _earlier(moves: tuple[AliasMoved, ...]) -> AliasMoved | None:
    """The move whose target was left for the one in force; None where it is forgotten."""
    if not moves:
        return None
    by_number = {move.number: move for move in moves}
    in_force = moves[-1].restores or moves[-1].number
    found = by_number.get(in_force - 1)
    if found is None or not found.restores:
        return found
    return replace(found, number=found.restores)


def _pointing(record: VplmRecord, move: AliasMoved) -> dict[str, object]:
    """The record's fields once an alias points to where `move` (numbered here) says."""
    alias = move.alias
    canaries = {name: held for name, held in record.canaries.items() if name != alias}
    if move.canary is not None:
        canaries[alias] = move.canary
    before = history(record, alias)
    moves = dict(record.moves)
    if not before or before[-1].target != move.target or move.restores:
        numbered = replace(move, number=before[-1].number + 1 if before else 1)
        moves[alias] = (*before, numbered)[-MOVES_REMEMBERED_MAX:]
    return {
        "aliases": {**record.aliases, alias: move.version},
        "canaries": canaries,
        "moves": moves,
    }


def _absent(name: VersionName) -> NotFound:
    return NotFound(f"{name} does not exist", metadata={"resource": str(name)})
