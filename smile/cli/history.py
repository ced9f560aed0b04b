"""`smile vplms rollback | history | undelete` and `smile versions diff | delete | undelete`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from smile.cli.command import Session
from smile.cli.output import facts, pointed, short, table, when, write_json
from smile.resources import SERVING, AliasMoved, MetricPair, TensorDiff, VersionDiff

VplmArgument = Annotated[str, typer.Argument(help="Id of the vPLM.")]
VersionArgument = Annotated[int, typer.Argument(help="Version number.")]
ForGood = Annotated[bool, typer.Option(help="Without a way back.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def rollback(
    session: Session,
    vplm: VplmArgument,
    alias: Annotated[str, typer.Argument(help="Alias to take back.")] = SERVING,
) -> None:
    """Point an alias to what it pointed to before; once more, one move further back."""
    moved = session.client.roll_back(vplm, alias)
    if session.json:
        return write_json(moved)
    session.note(f"{moved.name}: {alias} is version {pointed(moved, alias)} again")


def history(
    session: Session,
    vplm: VplmArgument,
    alias: Annotated[str, typer.Argument(help="One alias only.")] = "",
) -> None:
    """Show where aliases pointed and who moved them, newest first."""
    found = session.client.alias_moves(vplm, alias)
    if session.json:
        return write_json({"moves": found})
    rows = [[m.alias, str(m.number), _target(m), _how(m), short(m.by), when(m.time)] for m in found]
    session.out.print(table(["alias", "move>", "version", "how", "by", "since"], rows))


def undelete(
    session: Session,
    vplm: VplmArgument,
    uid: Annotated[str, typer.Option(help="Which one, if several had this name.")] = "",
) -> None:
    """Have a deleted vPLM back, as it was. `smile vplms list --deleted` shows what can be."""
    back = session.client.undelete_vplm(vplm, uid=uid)
    if session.json:
        return write_json(back)
    session.note(f"{back.name} is back")


def delete_version(
    session: Session,
    vplm: VplmArgument,
    version: VersionArgument,
    for_good: ForGood = False,
    yes: Yes = False,
) -> None:
    """Delete a version that no alias names."""
    if for_good and not yes and not session.json:
        typer.confirm(f"Delete version {version} of {vplm} for good?", abort=True, err=True)
    deleted = session.client.delete_version(vplm, version, for_good=for_good)
    if session.json:
        return write_json(deleted)
    kept = f"; until {when(deleted.purge_time)}: `smile versions undelete {vplm} {version}`"
    session.note(f"deleted {deleted.name}{kept if deleted.purge_time else ' for good'}")


def undelete_version(session: Session, vplm: VplmArgument, version: VersionArgument) -> None:
    """Have a deleted version back."""
    back = session.client.undelete_version(vplm, version)
    if session.json:
        return write_json(back)
    session.note(f"{back.name} is back")


def diff(
    session: Session,
    vplm: VplmArgument,
    base: Annotated[int, typer.Argument(help="Version number to compare from.")],
    other: Annotated[int, typer.Argument(help="Version number to compare to.")],
    other_vplm: Annotated[str, typer.Option(help="The second version's vPLM, if another.")] = "",
    tensors: Annotated[int, typer.Option(min=0, help="Rows of tensors, moved most first.")] = 10,
) -> None:
    """Compare two versions: what is said of them, and every tensor."""
    found = session.client.diff_versions(vplm, base, other, other_vplm=other_vplm)
    if session.json:
        return write_json(found)
    session.out.print(facts(_summary(found)))
    changes = [*found.spec, *found.training]
    if changes:
        rows = [[each.field, each.base, each.other] for each in changes]
        session.out.print(table(["field", f"v{base}", f"v{other}"], rows))
    if found.metrics:
        session.out.print(
            table(["metric", f"v{base}>", f"v{other}>", "change>"], map(_metric, found.metrics))
        )
    moved = moved_most(found.tensors)
    if moved[:tensors]:
        rows = [_tensor(each) for each in moved[:tensors]]
        session.out.print(table(["tensor", "shape", "l2>", "max>", "relative>"], rows))
    if len(moved) > tensors:
        session.note(f"{len(moved) - tensors} more tensors differ; --tensors shows them")


def moved_most(tensors: Iterable[TensorDiff]) -> list[TensorDiff]:
    """Those that differ: that one side has not first, then by how far they moved relative to what
    they were, those that were zero before others.
    """

    def order(each: TensorDiff) -> tuple[bool, bool, float, float]:
        return each.comparable, each.relative is not None, -(each.relative or 0.0), -each.l2

    return sorted((each for each in tensors if each.l2 or not each.comparable), key=order)


def _summary(diff: VersionDiff) -> list[tuple[str, str]]:
    relative = "" if diff.relative is None else f", {100 * diff.relative:.4g} % of the first's norm"
    rows = [
        ("from", diff.base),
        ("to", diff.other),
        ("weights", "the same bytes" if diff.same_bytes else f"moved by {diff.l2:.6g}{relative}"),
        ("labels added", ", ".join(diff.labels_added)),
        ("labels removed", ", ".join(diff.labels_removed)),
    ]
    return [(name, value) for name, value in rows if value]


def _metric(pair: MetricPair) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    both = pair.base is not None and pair.other is not None
    change = f"{pair.other - pair.base:+.4f}" if both else ""  # type: ignore[operator]
    return [pair.name, shown(pair.base), shown(pair.other), change]


def _tensor(each: TensorDiff) -> list[str]:
    if not each.comparable:
        return [each.name, f"{_shape(each.base_shape)} → {_shape(each.other_shape)}", "", "", ""]
    relative = "from zero" if each.relative is None else f"{100 * each.relative:.4g} %"
    return [each.name, _shape(each.base_shape), f"{each.l2:.4g}", f"{each.max_abs:.4g}", relative]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "none"


def _target(move: AliasMoved) -> str:
    if move.canary is None:
        return str(move.version)
    return f"{move.version}, and {move.canary.version} for {move.canary.weight:.4g} of requests"


def _how(move: AliasMoved) -> str:
    return f"rolled back to move {move.restores}" if move.restores else "set"
