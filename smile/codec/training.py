"""Training jobs, their records, events and reports."""

from __future__ import annotations

from smile import resources as r
from smile.codec.summaries import summary_from_pb, summary_to_pb
from smile.codec.tables import (
    CLASS_WEIGHTINGS,
    METHODS,
    OPTIMIZERS,
    SCHEDULES,
    SELECTIONS,
    STATES,
    TRAINING_STATES,
    WHENS,
    time_from_pb,
    time_to_pb,
)
from smile.v1 import trainer_pb2, training_records_pb2

NO_ALIAS = "-"
SWEEP_CONCURRENCY_DEFAULT = 2


def columns_to_pb(columns: r.ColumnMapping) -> trainer_pb2.ColumnMapping:
    return trainer_pb2.ColumnMapping(text=columns.text, label=columns.label, pair=columns.pair)


def columns_from_pb(message: trainer_pb2.ColumnMapping) -> r.ColumnMapping:
    default = r.ColumnMapping()
    return r.ColumnMapping(
        message.text or default.text, message.label or default.label, message.pair
    )


def hyper_parameters_to_pb(values: r.HyperParameters) -> trainer_pb2.HyperParameters:
    return trainer_pb2.HyperParameters(
        epochs=values.epochs,
        learning_rate=values.learning_rate,
        schedule=SCHEDULES.to_pb(values.schedule),
        batch_size=values.batch_size,
        optimizer=OPTIMIZERS.to_pb(values.optimizer),
        weight_decay=values.weight_decay,
        warmup_ratio=values.warmup_ratio,
        seed=values.seed,
        early_stopping_epochs=values.early_stopping_epochs,
        validation_ratio=values.validation_ratio,
        tokens_max=values.tokens_max,
        gradient_norm_max=values.gradient_norm_max,
        momentum=values.momentum,
        accumulation_batches=values.accumulation_batches,
        class_weighting=CLASS_WEIGHTINGS.to_pb(values.class_weighting),
        class_weights=dict(values.class_weights),
        early_stopping_delta=values.early_stopping_delta,
        selection=SELECTIONS.to_pb(values.selection),
        states=TRAINING_STATES.to_pb(values.states),
    )


def hyper_parameters_from_pb(
    message: trainer_pb2.HyperParameters, method: r.Method = r.Method.PET
) -> r.HyperParameters:
    """The hyper-parameters with the platform's defaults in place of unset fields."""
    default = r.defaults_of(method)

    def optional(field: str, otherwise: float) -> float:
        return float(getattr(message, field)) if message.HasField(field) else otherwise  # type: ignore[arg-type]

    return r.HyperParameters(
        epochs=message.epochs or default.epochs,
        learning_rate=message.learning_rate or default.learning_rate,
        schedule=SCHEDULES.from_pb(message.schedule),
        batch_size=message.batch_size or default.batch_size,
        optimizer=OPTIMIZERS.from_pb(message.optimizer),
        weight_decay=optional("weight_decay", default.weight_decay),
        warmup_ratio=optional("warmup_ratio", default.warmup_ratio),
        seed=message.seed,
        early_stopping_epochs=message.early_stopping_epochs,
        validation_ratio=optional("validation_ratio", default.validation_ratio),
        tokens_max=message.tokens_max,
        gradient_norm_max=optional("gradient_norm_max", default.gradient_norm_max),
        momentum=optional("momentum", default.momentum),
        accumulation_batches=message.accumulation_batches or default.accumulation_batches,
        class_weighting=CLASS_WEIGHTINGS.from_pb(message.class_weighting),
        class_weights=dict(message.class_weights),
        early_stopping_delta=message.early_stopping_delta,
        selection=SELECTIONS.from_pb(message.selection),
        states=TRAINING_STATES.from_pb(message.states),
    )


def report_to_pb(report: r.DatasetReport) -> trainer_pb2.DatasetReport:
    problems = [
        trainer_pb2.RowProblem(row=p.row, column=p.column, reason=p.reason, message=p.message)
        for p in report.problems
    ]
    return trainer_pb2.DatasetReport(
        rows=report.rows,
        valid_rows=report.valid_rows,
        problems=problems,
        problem_count=report.problem_count,
        label_counts=dict(report.label_counts),
        columns=report.columns,
    )


def report_from_pb(message: trainer_pb2.DatasetReport) -> r.DatasetReport:
    return r.DatasetReport(
        rows=message.rows,
        valid_rows=message.valid_rows,
        problems=tuple(
            r.RowProblem(p.row, p.column, p.reason, p.message) for p in message.problems
        ),
        problem_count=message.problem_count,
        label_counts=dict(message.label_counts),
        columns=tuple(message.columns),
    )


def sweep_to_pb(sweep: r.Sweep) -> trainer_pb2.Sweep:
    outcomes = [
        trainer_pb2.TrialOutcome(
            job=one.job, state=STATES.to_pb(one.state), value=one.value, version=one.version
        )
        for one in sweep.outcomes
    ]
    return trainer_pb2.Sweep(
        trials=[hyper_parameters_to_pb(trial) for trial in sweep.trials],
        concurrency_max=sweep.concurrency_max,
        metric=sweep.metric,
        outcomes=outcomes,
        best=sweep.best,
        stopping=sweep.stopping,
    )


def sweep_from_pb(message: trainer_pb2.Sweep, method: r.Method = r.Method.PET) -> r.Sweep:
    """The sweep with the platform's default where it does not say how many run at a time."""
    outcomes = tuple(
        r.TrialOutcome(
            one.job,
            STATES.from_pb(one.state),
            one.value if one.HasField("value") else None,
            one.version,
        )
        for one in message.outcomes
    )
    return r.Sweep(
        tuple(hyper_parameters_from_pb(trial, method) for trial in message.trials),
        message.concurrency_max or SWEEP_CONCURRENCY_DEFAULT,
        message.metric,
        outcomes,
        message.best,
        message.stopping,
    )


def job_to_pb(job: r.TrainingJob) -> trainer_pb2.TrainingJob:
    message = trainer_pb2.TrainingJob(
        name=job.name,
        vplm=job.vplm,
        dataset=job.dataset,
        validation_dataset=job.validation_dataset,
        columns=columns_to_pb(job.columns),
        hyper_parameters=hyper_parameters_to_pb(job.hyper_parameters),
        base_version=job.base_version,
        promote_alias=job.promote_alias or NO_ALIAS,
        when=WHENS.to_pb(job.when),
        priority=job.priority,
        state=STATES.to_pb(job.state),
        create_time=time_to_pb(job.create_time),
        start_time=time_to_pb(job.start_time),
        end_time=time_to_pb(job.end_time),
        version=job.version,
        progress=_progress_to_pb(job.progress),
        metrics=dict(job.metrics),
        attempt=job.attempt,
        queue_position=job.queue_position,
        estimated_start_time=time_to_pb(job.estimated_start_time),
        summary=None if job.summary is None else summary_to_pb(job.summary),
        sweep=None if job.sweep is None else sweep_to_pb(job.sweep),
        parent_job=job.parent_job,
        method=METHODS.to_pb(job.method),
    )
    if job.error is not None:
        message.error.reason = job.error.reason
        message.error.message = job.error.message
        if job.error.dataset_report is not None:
            message.error.dataset_report.CopyFrom(report_to_pb(job.error.dataset_report))
    return message


def job_from_pb(message: trainer_pb2.TrainingJob) -> r.TrainingJob:
    method = METHODS.from_pb(message.method)
    alias = message.promote_alias or (NO_ALIAS if method is r.Method.FULL else r.SERVING)
    return r.TrainingJob(
        name=message.name,
        vplm=message.vplm,
        dataset=message.dataset,
        validation_dataset=message.validation_dataset,
        columns=columns_from_pb(message.columns),
        hyper_parameters=hyper_parameters_from_pb(message.hyper_parameters, method),
        base_version=message.base_version,
        promote_alias="" if alias == NO_ALIAS else alias,
        when=WHENS.from_pb(message.when),
        priority=message.priority,
        state=STATES.from_pb(message.state),
        create_time=time_from_pb(message, "create_time"),
        start_time=time_from_pb(message, "start_time"),
        end_time=time_from_pb(message, "end_time"),
        version=message.version,
        error=_job_error_from_pb(message),
        progress=_progress_from_pb(message.progress),
        metrics=dict(message.metrics),
        attempt=message.attempt,
        queue_position=message.queue_position,
        estimated_start_time=time_from_pb(message, "estimated_start_time"),
        summary=summary_from_pb(message.summary) if message.HasField("summary") else None,
        sweep=sweep_from_pb(message.sweep, method) if message.HasField("sweep") else None,
        parent_job=message.parent_job,
        method=method,
    )


def _job_error_from_pb(message: trainer_pb2.TrainingJob) -> r.JobError | None:
    if not message.HasField("error"):
        return None
    error = message.error
    report = report_from_pb(error.dataset_report) if error.HasField("dataset_report") else None
    return r.JobError(error.reason, error.message, report)


def _progress_to_pb(progress: r.JobProgress) -> trainer_pb2.TrainingProgress:
    return trainer_pb2.TrainingProgress(
        phase=progress.phase,
        step=progress.step,
        steps_total=progress.steps_total,
        epoch=progress.epoch,
        epochs_total=progress.epochs_total,
        loss=progress.loss,
    )


def _progress_from_pb(message: trainer_pb2.TrainingProgress) -> r.JobProgress:
    return r.JobProgress(
        phase=message.phase,
        step=message.step,
        steps_total=message.steps_total,
        epoch=message.epoch,
        epochs_total=message.epochs_total,
        loss=message.loss,
    )


def record_to_pb(record: r.TrainingRecord) -> training_records_pb2.TrainingRecord:
    return training_records_pb2.TrainingRecord(
        training_job=job_to_pb(record.job), fence=record.fence
    )


def record_from_pb(message: training_records_pb2.TrainingRecord) -> r.TrainingRecord:
    return r.TrainingRecord(job_from_pb(message.training_job), message.fence)


def metric_to_pb(metric: r.Metric) -> trainer_pb2.TrainingMetric:
    return trainer_pb2.TrainingMetric(
        name=metric.name, value=metric.value, step=metric.step, epoch=metric.epoch
    )


def metric_from_pb(message: trainer_pb2.TrainingMetric) -> r.Metric:
    return r.Metric(message.name, message.value, message.step, message.epoch)


def event_to_pb(event: r.TrainingEvent) -> trainer_pb2.WatchTrainingJobResponse:
    message = trainer_pb2.WatchTrainingJobResponse(
        resume_token=event.resume_token, time=time_to_pb(event.time)
    )
    if event.job is not None:
        message.training_job.CopyFrom(job_to_pb(event.job))
    else:
        message.metrics.metrics.extend(metric_to_pb(metric) for metric in event.metrics)
    return message


def event_from_pb(message: trainer_pb2.WatchTrainingJobResponse) -> r.TrainingEvent:
    job = job_from_pb(message.training_job) if message.HasField("training_job") else None
    return r.TrainingEvent(
        resume_token=message.resume_token,
        time=time_from_pb(message, "time"),
        job=job,
        metrics=tuple(metric_from_pb(metric) for metric in message.metrics.metrics),
    )
