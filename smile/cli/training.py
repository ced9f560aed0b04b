"""`smile train | watch`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, cast

import typer

from smile.cli.command import Session, command
from smile.cli.datasets import ColumnOptions, send, show_report
from smile.cli.jobs import show_job
from smile.cli.output import short, write_json
from smile.cli.progress import JobView
from smile.client.options import TrainOptions, hyper_parameters
from smile.client.training import JobFailed
from smile.errors import AlreadyExists
from smile.resources import (
    FULL_LEARNING_RATE,
    SERVING,
    ClassWeighting,
    HyperParameters,
    JobState,
    Method,
    Optimizer,
    Schedule,
    Selection,
    TrainingEvent,
    TrainingJob,
    TrainingStates,
    When,
)

_DEFAULT = HyperParameters()


@dataclass(frozen=True, slots=True)
class HyperOptions:
    """The hyper-parameters."""

    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = _DEFAULT.epochs
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help=f"Peak. Default: {_DEFAULT.learning_rate:g}, method full {FULL_LEARNING_RATE:g}."
        ),
    ] = None
    schedule: Annotated[Schedule, typer.Option(help="After warm-up.")] = _DEFAULT.schedule
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = _DEFAULT.batch_size
    optimizer: Annotated[Optimizer, typer.Option(help="Algorithm.")] = _DEFAULT.optimizer
    weight_decay: Annotated[float, typer.Option(help="0 to 1.")] = _DEFAULT.weight_decay
    warmup_ratio: Annotated[float, typer.Option(help="Share of steps.")] = _DEFAULT.warmup_ratio
    seed: Annotated[int, typer.Option(help="Of split and order.")] = _DEFAULT.seed
    early_stopping_epochs: Annotated[
        int, typer.Option(help="Stop after so many epochs without progress; 0: never.")
    ] = _DEFAULT.early_stopping_epochs
    validation_ratio: Annotated[float, typer.Option(help="Share of rows to validate on.")] = (
        _DEFAULT.validation_ratio
    )
    tokens_max: Annotated[int, typer.Option(help="Cut longer texts; 0: the backbone's limit.")] = (
        _DEFAULT.tokens_max
    )
    gradient_norm_max: Annotated[float, typer.Option(help="0: no clipping.")] = (
        _DEFAULT.gradient_norm_max
    )
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = _DEFAULT.momentum
    accumulation_batches: Annotated[int, typer.Option(help="Batches that make one step.")] = (
        _DEFAULT.accumulation_batches
    )
    class_weighting: Annotated[
        ClassWeighting, typer.Option(help="How much each class counts in the loss.")
    ] = _DEFAULT.class_weighting
    class_weight: Annotated[
        list[str] | None, typer.Option(help="LABEL=WEIGHT, for one class; may be repeated.")
    ] = None
    early_stopping_delta: Annotated[
        float, typer.Option(help="How much better counts as progress.")
    ] = _DEFAULT.early_stopping_delta
    selection: Annotated[Selection, typer.Option(help="Metric that chooses the best epoch.")] = (
        _DEFAULT.selection
    )
    states: Annotated[
        TrainingStates, typer.Option(help="Lower layers: computed, looked up, or either by row.")
    ] = _DEFAULT.states


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What to train on and what to start from."""

    data: Annotated[
        Path | None, typer.Option(help="Upload this file and train on it; once per content.")
    ] = None
    dataset: Annotated[str | None, typer.Option(help="Train on this dataset.")] = None
    validation_dataset: Annotated[
        str, typer.Option(help="Validate on this dataset instead of a share of the rows.")
    ] = ""
    base_version: Annotated[
        int, typer.Option(help="Start from this version. Default: fresh weights, or the adapter's.")
    ] = 0
    promote: Annotated[
        str | None,
        typer.Option(
            help=f"Alias to move to the new version; '-' moves none. Default: {SERVING}; of a full "
            "model, which is not served, none."
        ),
    ] = None
    method: Annotated[
        Method, typer.Option(help="Full: train the whole model, to export. Costs many times more.")
    ] = Method.PET
    when: Annotated[When, typer.Option(help="Off peak: in the operator's windows.")] = When.NOW
    priority: Annotated[int, typer.Option(help="Higher ones go before your others.")] = 0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("train")(command(train))
    app.command("watch")(command(watch))


def train(
    session: Session,
    vplm: Annotated[str, typer.Argument(help="Id of the vPLM.")],
    source: SourceOptions,
    columns: ColumnOptions,
    hyper: HyperOptions,
    follow: Annotated[
        bool, typer.Option("--watch/--detach", help="Stay until the job ends.")
    ] = True,
) -> None:
    """Train a vPLM: its PET module and head, or the whole model. A new version comes out of it."""
    options = options_of(source, columns, hyper)
    dataset = dataset_of(session, vplm, source, options)
    started(session, session.client.train(vplm, dataset, **options), follow=follow)


def options_of(source: SourceOptions, columns: ColumnOptions, hyper: HyperOptions) -> TrainOptions:
    """What the client's `train` is to be told."""
    options = {field.name: getattr(hyper, field.name) for field in fields(hyper)}
    if hyper.learning_rate is None:
        del options["learning_rate"]
    options["class_weights"] = _weights(options.pop("class_weight") or [])
    options |= {field.name: getattr(columns, field.name) for field in fields(columns)}
    options |= {
        "validation_dataset": source.validation_dataset,
        "base_version": source.base_version,
        "when": source.when,
        "priority": source.priority,
        "method": source.method,
    }
    if source.promote is not None:
        options["promote_alias"] = None if source.promote == "-" else source.promote
    return cast(TrainOptions, options)


def dataset_of(session: Session, vplm: str, source: SourceOptions, options: TrainOptions) -> str:
    """The id of the dataset to train on; a file is uploaded."""
    if (source.data is None) == (source.dataset is None):
        raise typer.BadParameter("give either --data FILE or --dataset ID")
    if source.dataset is not None:
        return source.dataset
    hyper_parameters(options)  # wrong ones are told before the upload
    session.client.vplm(vplm)
    return _uploaded(session, source.data)


def started(session: Session, job: TrainingJob, *, follow: bool) -> None:
    """Shows a job that has been queued, or follows it to its end."""
    if follow:
        session.note(f"queued {job.name}")
        return _follow(session, job, "")
    if session.json:
        return write_json(job)
    show_job(session, job)


def watch(
    session: Session,
    job: Annotated[str, typer.Argument(help="Id of the job.")],
    resume_token: Annotated[str, typer.Option(help="Go on after this event.")] = "",
) -> None:
    """Follow a job until it ends. As JSON: one event a line."""
    _follow(session, session.client.job(job), resume_token)


def _weights(given: list[str]) -> dict[str, float]:
    """`LABEL=WEIGHT` texts as weights by label."""
    weights: dict[str, float] = {}
    for text in given:
        label, _, weight = text.rpartition("=")
        try:
            weights[label] = float(weight)
        except ValueError:
            label = ""
        if not label:
            raise typer.BadParameter(f"--class-weight takes LABEL=WEIGHT, got '{text}'")
    return weights


def _follow(session: Session, job: TrainingJob, resume_token: str) -> None:
    events: Iterator[TrainingEvent] = session.client.watch(job, resume_token=resume_token)
    try:
        if session.json:
            for event in events:
                write_json(event, indent=None)
        else:
            with JobView(session.err) as view:
                for event in events:
                    view.show(event)
    except KeyboardInterrupt:
        session.note(f"{short(job.name)} goes on: `smile watch` it or `smile cancel` it")
        raise
    ended = session.client.job(job)
    if ended.state is not JobState.SUCCEEDED:
        _show_failure(session, ended)
        raise JobFailed(ended)
    if not session.json:
        show_job(session, ended)
        if ended.method is Method.FULL:
            version = f"{short(ended.vplm)} FOLDER --version {short(ended.version)}"
            session.note(f"take it away: smile vplms export {version}")


def _show_failure(session: Session, job: TrainingJob) -> None:
    if job.error is not None and job.error.dataset_report is not None and not session.json:
        show_report(session, job.error.dataset_report)


def _uploaded(session: Session, file: Path | None) -> str:
    """The id of the dataset with the file's content, uploaded unless it is there already."""
    assert file is not None
    stem = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")[:40]
    prefix = stem if stem[:1].isalpha() else f"data-{stem}".rstrip("-")
    dataset = f"{prefix}-{_digest(file)[:12]}"
    try:
        send(session, dataset, file)
        session.note(f"uploaded {dataset}")
    except AlreadyExists:
        session.note(f"{dataset} is there already")
    return dataset


def _digest(file: Path) -> str:
    """SHA-256 in hex; of nothing where the file cannot be read, which the upload then reports."""
    sha256 = hashlib.sha256()
    if file.is_file():
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 20):
                sha256.update(chunk)
    return sha256.hexdigest()
