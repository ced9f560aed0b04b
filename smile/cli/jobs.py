"""`smile jobs [show] | cancel`, and how a job is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer

from smile.cli.command import Session, command
from smile.cli.output import facts, metric_rows, seconds, short, table, when, write_json
from smile.resources import ClassScore, Method, Sweep, TrainingJob, TrainingSummary

CONFUSION_SHOWN_MAX = 12  # classes; a wider matrix fits no screen


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Your training jobs.", invoke_without_command=True)
    group.callback()(command(jobs))
    group.command("show")(command(show))
    app.add_typer(group, name="jobs")
    app.command("cancel")(command(cancel))


def jobs(
    session: Session,
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
) -> None:
    """List your training jobs, newest first."""
    if context.invoked_subcommand is not None:
        return None
    found = list(islice(session.client.jobs(), limit))
    if session.json:
        return write_json({"jobs": found})
    rows = [
        [
            short(j.name), short(j.vplm), short(j.dataset), str(j.state), _step(j),
            short(j.version), when(j.create_time), seconds(j.start_time, j.end_time),
        ]
        for j in found
    ]  # fmt: skip
    columns = ["job", "vplm", "dataset", "state", "step>", "version>", "created", "took>"]
    session.out.print(table(columns, rows))


def show(session: Session, job: Annotated[str, typer.Argument(help="Id of the job.")]) -> None:
    """Show one job: where it is, and once it has succeeded how good its version is."""
    found = session.client.job(job)
    if session.json:
        return write_json(found)
    show_job(session, found)


def cancel(session: Session, job: Annotated[str, typer.Argument(help="Id of the job.")]) -> None:
    """Ask a job to stop."""
    stopped = session.client.cancel(job)
    if session.json:
        return write_json(stopped)
    session.note(f"{stopped.name} is {stopped.state}")
    show_job(session, stopped)


def show_job(session: Session, job: TrainingJob) -> None:
    """A job for people, with its metrics and tables."""
    session.out.print(facts(job_facts(job)))
    if job.sweep is not None:
        session.out.print(
            table(
                ["", "trial>", "job", "state", job.sweep.metric + ">", "tried"],
                _trial_rows(job.sweep),
            )
        )
    if job.metrics:
        session.out.print(table(["metric", "value>"], metric_rows(job.metrics)))
    if job.summary is not None:
        show_summary(session, job.summary)


def _trial_rows(sweep: Sweep) -> Iterator[list[str]]:
    """A row per trial, with the values by which it differs from the first."""
    first = asdict(sweep.trials[0])
    for number, values in enumerate(sweep.trials, 1):
        begun = sweep.outcomes[number - 1] if number <= len(sweep.outcomes) else None
        varied = [
            f"{name} {value}"
            for name, value in asdict(values).items()
            if any(asdict(other)[name] != first[name] for other in sweep.trials)
        ]
        yield [
            "best" if number == sweep.best else "",
            str(number),
            short(begun.job) if begun else "",
            str(begun.state) if begun else "",
            f"{begun.value:.4f}" if begun and begun.value is not None else "",
            ", ".join(varied),
        ]


def show_summary(session: Session, summary: TrainingSummary) -> None:
    """What came of a training, class by class, and what it takes to repeat it."""
    columns = ["precision>", "recall>", "f1>", "support>"]
    if summary.classes:
        session.out.print(table(["class", *columns], _score_rows(summary.classes)))
    if summary.entities:
        session.out.print(table(["entity", *columns], _score_rows(summary.entities)))
    if 0 < len(summary.confusion) <= CONFUSION_SHOWN_MAX:
        labels = [score.label for score in summary.classes]
        rows = [
            [label, *map(str, row)] for label, row in zip(labels, summary.confusion, strict=True)
        ]
        session.out.print(table(["true, predicted:", *(f"{n}>" for n in labels)], rows))
    known = [
        ("states", str(summary.states)),
        ("local encoder", summary.encoder_digest),
        ("domain", f"{summary.domain} {summary.domain_digest}".strip()),
        ("seed", str(summary.seed)),
        ("spec", summary.spec_digest),
    ]
    told = [(name, value) for name, value in known if value]
    session.out.print(facts([*told, *sorted(summary.environment.items())]))


def _score_rows(scores: Sequence[ClassScore]) -> Iterator[list[str]]:
    for row in scores:
        ratios = [f"{value:.4f}" for value in (row.precision, row.recall, row.f1)]
        yield [row.label, *ratios, str(row.support)]


def job_facts(job: TrainingJob) -> list[tuple[str, str]]:
    """A job for people."""
    rows = [
        ("job", job.name),
        ("vplm", job.vplm),
        ("dataset", job.dataset),
        ("trial of", job.parent_job),
        ("state", str(job.state)),
        ("trains", "the whole model" if job.method is Method.FULL else ""),
        ("runs", f"{job.when}, priority {job.priority}"),
        ("ahead in queue", str(job.queue_position or "")),
        ("starts about", when(job.estimated_start_time)),
        ("step", _step(job)),
        ("version", job.version),
        ("created", when(job.create_time)),
        ("took", seconds(job.start_time, job.end_time)),
        ("error", f"{job.error.message} ({job.error.reason})" if job.error else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _step(job: TrainingJob) -> str:
    progress = job.progress
    return f"{progress.step}/{progress.steps_total}" if progress.steps_total else ""
