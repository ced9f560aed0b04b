"""For operators: `smile storage status | verify | gc | rebuild`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from smile.cli.command import Session, command
from smile.cli.exits import Exit
from smile.cli.output import facts, size, table, when, write_json
from smile.errors import Unavailable
from smile.maintenance import (
    Action,
    Finding,
    MaintenanceEvent,
    MaintenanceProgress,
    MaintenanceSummary,
    Severity,
    StoreReport,
)

STYLES = {Severity.DAMAGE: "bold red", Severity.REPAIRABLE: "yellow", Severity.NOTE: "dim"}
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be done; do nothing.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    storage = typer.Typer(
        help="For operators: the object store: status, verify, gc, rebuild.", no_args_is_help=True
    )
    storage.command("status")(command(status))
    storage.command("verify")(command(verify))
    storage.command("gc")(command(collect))
    storage.command("rebuild")(command(rebuild))
    app.add_typer(storage, name="storage")


def status(session: Session) -> None:
    """Show what the object store can do, and what it is good for."""
    found = session.client.store()
    if session.json:
        return write_json(found)
    session.out.print(facts(_facts(found)))
    rows = [[c.capability, "yes" if c.granted else "no", c.detail] for c in found.capabilities]
    session.out.print(table(["capability", "there", "why"], rows))
    modes = [
        [
            mode.mode,
            "yes" if mode.wanted else "no",
            "yes" if mode.granted else "no",
            ", ".join(mode.missing),
        ]
        for mode in found.modes
    ]
    session.out.print(table(["mode", "wanted", "granted", "missing"], modes))


def verify(
    session: Session,
    tenant: Annotated[str, typer.Option(help="Only what is this tenant's.")] = "",
    records_only: Annotated[
        bool, typer.Option("--records-only", help="Look for bytes, and do not read them.")
    ] = False,
) -> None:
    """Read all that is stored and check it. Exit code 1 where something is wrong."""
    summary = _show(session, session.client.verify_store(tenant, records_only=records_only))
    session.note(
        f"{summary.objects} objects, {size(summary.bytes_read)} read: {summary.damage} damaged, "
        f"{summary.repairable} to be rebuilt, {summary.notes} notes"
    )
    if not summary.sound:
        raise typer.Exit(Exit.INTERNAL)


def collect(
    session: Session,
    dry_run: DryRun = False,
    grace_hours: Annotated[
        float,
        typer.Option(
            min=0, help="How long something must have lain unreferenced, at least 1; 0: as set."
        ),
    ] = 0,
) -> None:
    """Put aside what nothing points to, and remove what has lain aside for as long."""
    summary = _show(
        session, session.client.collect_garbage(dry_run=dry_run, grace_s=3600 * grace_hours)
    )
    session.note(
        f"{summary.objects} objects looked at, {summary.notes} are garbage, {summary.changed} "
        f"({size(summary.changed_bytes)}) were put aside, brought back or removed"
    )


def rebuild(session: Session, dry_run: DryRun = False) -> None:
    """Make indexes anew from records, as after a loss, and sign with the present key.

    Records of vPLMs that are lost are made anew of their versions. Then the trainer queues again
    what its queue has lost. Exit code 1 where a record cannot be read or restored.
    """
    summary = _show(session, session.client.rebuild_indexes(dry_run=dry_run))
    session.note(
        f"{summary.objects} objects looked at, {summary.changed} made anew, "
        f"{summary.damage} damaged"
    )
    if not dry_run:
        _requeue(session)
    if not summary.sound:
        raise typer.Exit(Exit.INTERNAL)


def _requeue(session: Session) -> None:
    """The trainer's part, where there is one."""
    try:
        jobs = session.client.requeue_jobs()
    except Unavailable as error:
        return session.note(
            f"the trainer cannot be asked ({error.message}): it queues what was lost when "
            "it starts, and every SMILE_TRAINER_RECONCILE_S"
        )
    if session.json:
        return write_json({"jobs_queued": jobs}, indent=None)
    return session.note(f"{jobs} jobs were queued again")


def _facts(report: StoreReport) -> list[tuple[str, str]]:
    signing = report.signing
    others = [key for key in signing.verification_keys if key != signing.key]
    return [
        ("store", report.store),
        ("probed", when(report.probe_time) or "not yet"),
        ("signed with", signing.key or "nothing"),
        ("also counts", ", ".join(others)),
        ("unsigned records", "accepted" if signing.unsigned_accepted else "refused"),
    ]


def _show(session: Session, events: Iterable[MaintenanceEvent]) -> MaintenanceSummary:
    """Findings as they come and the summary: lines for people, one JSON a line for programs."""
    bar = _bar(session)
    summary = MaintenanceSummary(0)
    with bar or nullcontext():
        task = bar.add_task("objects", total=None) if bar is not None else None
        for event in events:
            if isinstance(event, MaintenanceSummary):
                summary = event
            if session.json:
                if not isinstance(event, MaintenanceProgress):
                    write_json(_named(event), indent=None)
            elif isinstance(event, Finding):
                session.out.print(_line(event), soft_wrap=True)
            elif isinstance(event, MaintenanceProgress) and bar is not None and task is not None:
                bar.update(task, completed=event.objects_done, total=event.objects_total or None)
    return summary


def _named(event: Finding | MaintenanceSummary) -> dict[str, object]:
    return {"finding" if isinstance(event, Finding) else "summary": event}


def _bar(session: Session) -> Progress | None:
    """A bar on the terminal of people."""
    if session.json or not session.err.is_terminal:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=session.err, transient=True)


def _line(finding: Finding) -> Text:
    line = Text(f"{finding.severity} ", style=STYLES[finding.severity])
    line.append(f"{finding.kind}  {finding.object_key}", style="default")
    if finding.action is not Action.NONE:
        line.append(f"  {finding.action}", style="green")
    if finding.detail:
        line.append(f"  {finding.detail}", style="dim")
    return line
