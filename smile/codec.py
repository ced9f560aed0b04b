"""Domain values to protobuf and back: the one place both servers and SDK use.

`*_to_pb` and `*_from_pb` are inverse to each other for every valid value. Decoding fills defaults, so
domain code never sees an unset field; it raises `InvalidSpec` where a combination makes no sense.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from smile import resources as r
from smile.errors import InvalidSpec
from smile.model.specs import (
    BackboneShape,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Pooling,
    Projection,
    Task,
)
from smile.names import BackboneName
from smile.v1 import (
    identity_pb2,
    processor_pb2,
    resources_pb2,
    storage_pb2,
    trainer_pb2,
    training_records_pb2,
)

ADAPTER_RANK_DEFAULT = 24
LORA_RANK_DEFAULT = 8
NO_ALIAS = "-"

E = TypeVar("E", bound=enum.StrEnum)


class _Table(Generic[E]):
    """A two-way table between a domain enum and the protobuf enum whose values carry `prefix`."""

    def __init__(self, domain: type[E], prefix: str, pb: Any, default: E | None = None) -> None:
        self._default = default
        self._to = {member: int(pb.Value(f"{prefix}_{member.name}")) for member in domain}
        self._from = {number: member for member, number in self._to.items()}

    def to_pb(self, value: E) -> Any:
        return self._to[value]

    def from_pb(self, number: int) -> E:
        if number == 0 and self._default is not None:
            return self._default
        if number not in self._from:
            raise InvalidSpec(f"an enum value is unset or unknown: {number}")
        return self._from[number]


_pb = resources_pb2
KINDS = _Table(PetKind, "PET_KIND", _pb.PetKind)
TASKS = _Table(Task, "TASK", _pb.Task)
POOLINGS = _Table(Pooling, "POOLING", _pb.Pooling, Pooling.MEAN)
PROJECTIONS = _Table(Projection, "PROJECTION", _pb.Projection)
PRECISIONS = _Table(DType, "PRECISION", _pb.Precision, DType.FLOAT16)
ORIGINS = _Table(r.VersionOrigin, "VERSION_ORIGIN", _pb.VersionOrigin)
FORMATS = _Table(r.DatasetFormat, "DATASET_FORMAT", _pb.DatasetFormat)
OPTIMIZERS = _Table(r.Optimizer, "OPTIMIZER", trainer_pb2.Optimizer, r.Optimizer.ADAMW)
SCHEDULES = _Table(
    r.Schedule, "LEARNING_RATE_SCHEDULE", trainer_pb2.LearningRateSchedule, r.Schedule.LINEAR
)
STATES = _Table(r.JobState, "STATE", trainer_pb2.TrainingJob.State, r.JobState.QUEUED)


def time_to_pb(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def time_from_pb(message: Any, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    value: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    return value


def duration_to_pb(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=max(seconds, 0.0)))
    return duration


def backbone_to_pb(backbone: r.Backbone) -> resources_pb2.Backbone:
    shape = backbone.shape
    return resources_pb2.Backbone(
        name=backbone.name,
        family=backbone.family,
        digest=backbone.digest,
        layers=shape.layers,
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        heads=shape.heads,
        tokens_max=shape.tokens_max,
        parameters=shape.parameters,
        size_bytes=shape.bytes,
    )


def backbone_from_pb(message: resources_pb2.Backbone) -> r.Backbone:
    shape = BackboneShape(
        layers=message.layers,
        hidden=message.hidden,
        intermediate=message.intermediate,
        heads=message.heads,
        tokens_max=message.tokens_max,
        parameters=message.parameters,
        bytes=message.size_bytes,
    )
    return r.Backbone(message.name, message.family, message.digest, shape)


def pet_to_pb(pet: PetSpec) -> resources_pb2.PetSpec:
    return resources_pb2.PetSpec(
        kind=KINDS.to_pb(pet.kind),
        first_layer=pet.first_layer,
        rank=pet.rank,
        alpha=pet.alpha,
        targets=[PROJECTIONS.to_pb(target) for target in pet.targets],
    )


def pet_from_pb(message: resources_pb2.PetSpec) -> PetSpec:
    """The spec with the platform's defaults in place of unset fields."""
    kind = KINDS.from_pb(message.kind)
    targets = tuple(
        sorted({PROJECTIONS.from_pb(t) for t in message.targets}, key=_projection_order)
    )
    rank, alpha = message.rank, message.alpha
    if kind in (PetKind.PFEIFFER, PetKind.HOULSBY):
        rank = rank or ADAPTER_RANK_DEFAULT
    if kind is PetKind.LORA:
        rank = rank or LORA_RANK_DEFAULT
        alpha = alpha or 2.0 * rank
        targets = targets or (Projection.QUERY, Projection.VALUE)
    first_layer = message.first_layer if message.HasField("first_layer") else None
    return PetSpec(kind, first_layer, rank, alpha, targets)


def _projection_order(projection: Projection) -> int:
    return list(Projection).index(projection)


def head_to_pb(head: HeadSpec) -> resources_pb2.HeadSpec:
    return resources_pb2.HeadSpec(
        task=TASKS.to_pb(head.task), labels=head.labels, pooling=POOLINGS.to_pb(head.pooling)
    )


def head_from_pb(message: resources_pb2.HeadSpec) -> HeadSpec:
    return HeadSpec(
        TASKS.from_pb(message.task), tuple(message.labels), POOLINGS.from_pb(message.pooling)
    )


def spec_to_pb(spec: ModuleSpec) -> resources_pb2.ModuleSpec:
    return resources_pb2.ModuleSpec(
        backbone=str(BackboneName(spec.backbone)),
        backbone_digest=spec.backbone_digest,
        pet=pet_to_pb(spec.pet),
        head=head_to_pb(spec.head),
        precision=PRECISIONS.to_pb(spec.dtype),
    )


def spec_from_pb(message: resources_pb2.ModuleSpec) -> ModuleSpec:
    return ModuleSpec(
        backbone=BackboneName.parse(message.backbone).backbone,
        backbone_digest=message.backbone_digest,
        pet=pet_from_pb(message.pet),
        head=head_from_pb(message.head),
        dtype=PRECISIONS.from_pb(message.precision),
    )


def vplm_to_pb(vplm: r.Vplm) -> resources_pb2.Vplm:
    return resources_pb2.Vplm(
        name=vplm.name,
        display_name=vplm.display_name,
        spec=spec_to_pb(vplm.spec),
        aliases=dict(vplm.aliases),
        latest_version=vplm.latest_version,
        create_time=time_to_pb(vplm.create_time),
        update_time=time_to_pb(vplm.update_time),
        etag=vplm.etag,
        uid=vplm.uid,
        labels=dict(vplm.labels),
    )


def vplm_from_pb(message: resources_pb2.Vplm) -> r.Vplm:
    return r.Vplm(
        name=message.name,
        spec=spec_from_pb(message.spec),
        display_name=message.display_name,
        aliases=dict(message.aliases),
        latest_version=message.latest_version,
        create_time=time_from_pb(message, "create_time"),
        update_time=time_from_pb(message, "update_time"),
        etag=message.etag,
        uid=message.uid,
        labels=dict(message.labels),
    )


def version_to_pb(version: r.VplmVersion) -> resources_pb2.VplmVersion:
    return resources_pb2.VplmVersion(
        name=version.name,
        digest=version.digest,
        size_bytes=version.size_bytes,
        spec=spec_to_pb(version.spec),
        origin=ORIGINS.to_pb(version.origin),
        training_job=version.training_job,
        metrics=dict(version.metrics),
        create_time=time_to_pb(version.create_time),
        note=version.note,
    )


def version_from_pb(message: resources_pb2.VplmVersion) -> r.VplmVersion:
    return r.VplmVersion(
        name=message.name,
        digest=message.digest,
        size_bytes=message.size_bytes,
        spec=spec_from_pb(message.spec),
        origin=ORIGINS.from_pb(message.origin),
        training_job=message.training_job,
        metrics=dict(message.metrics),
        create_time=time_from_pb(message, "create_time"),
        note=message.note,
    )


def dataset_to_pb(dataset: r.Dataset) -> resources_pb2.Dataset:
    return resources_pb2.Dataset(
        name=dataset.name,
        format=FORMATS.to_pb(dataset.format),
        digest=dataset.digest,
        size_bytes=dataset.size_bytes,
        create_time=time_to_pb(dataset.create_time),
        display_name=dataset.display_name,
    )


def dataset_from_pb(message: resources_pb2.Dataset) -> r.Dataset:
    return r.Dataset(
        name=message.name,
        format=FORMATS.from_pb(message.format),
        digest=message.digest,
        size_bytes=message.size_bytes,
        create_time=time_from_pb(message, "create_time"),
        display_name=message.display_name,
    )


def tenant_to_pb(tenant: r.Tenant) -> identity_pb2.Tenant:
    return identity_pb2.Tenant(
        name=tenant.name,
        display_name=tenant.display_name,
        create_time=time_to_pb(tenant.create_time),
        quota_bytes=tenant.quota_bytes,
    )


def tenant_from_pb(message: identity_pb2.Tenant) -> r.Tenant:
    return r.Tenant(
        message.name,
        message.display_name,
        time_from_pb(message, "create_time"),
        message.quota_bytes,
    )


def api_key_to_pb(key: r.ApiKey) -> identity_pb2.ApiKey:
    return identity_pb2.ApiKey(
        name=key.name,
        display_name=key.display_name,
        create_time=time_to_pb(key.create_time),
        revoke_time=time_to_pb(key.revoke_time),
    )


def api_key_from_pb(message: identity_pb2.ApiKey) -> r.ApiKey:
    return r.ApiKey(
        message.name,
        message.display_name,
        time_from_pb(message, "create_time"),
        time_from_pb(message, "revoke_time"),
    )


def usage_to_pb(usage: r.Usage) -> storage_pb2.Usage:
    rows = [
        storage_pb2.VplmUsage(
            name=row.name,
            versions=row.versions,
            size_bytes=row.size_bytes,
            serving_bytes=row.serving_bytes,
            full_model_bytes=row.full_model_bytes,
        )
        for row in usage.vplms
    ]
    return storage_pb2.Usage(
        name=usage.name,
        stored_bytes=usage.stored_bytes,
        dataset_bytes=usage.dataset_bytes,
        quota_bytes=usage.quota_bytes,
        vplm_count=usage.vplm_count,
        vplms=rows,
        next_page_token=usage.next_page_token,
    )


def usage_from_pb(message: storage_pb2.Usage) -> r.Usage:
    rows = tuple(
        r.VplmUsage(row.name, row.versions, row.size_bytes, row.serving_bytes, row.full_model_bytes)
        for row in message.vplms
    )
    return r.Usage(
        name=message.name,
        stored_bytes=message.stored_bytes,
        dataset_bytes=message.dataset_bytes,
        quota_bytes=message.quota_bytes,
        vplm_count=message.vplm_count,
        vplms=rows,
        next_page_token=message.next_page_token,
    )


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
    )


def hyper_parameters_from_pb(message: trainer_pb2.HyperParameters) -> r.HyperParameters:
    """The hyper-parameters with the platform's defaults in place of unset fields."""
    default = r.HyperParameters()

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
        state=STATES.to_pb(job.state),
        create_time=time_to_pb(job.create_time),
        start_time=time_to_pb(job.start_time),
        end_time=time_to_pb(job.end_time),
        version=job.version,
        progress=_progress_to_pb(job.progress),
        metrics=dict(job.metrics),
        attempt=job.attempt,
        queue_position=job.queue_position,
    )
    if job.error is not None:
        message.error.reason = job.error.reason
        message.error.message = job.error.message
        if job.error.dataset_report is not None:
            message.error.dataset_report.CopyFrom(report_to_pb(job.error.dataset_report))
    return message


def job_from_pb(message: trainer_pb2.TrainingJob) -> r.TrainingJob:
    alias = message.promote_alias or r.SERVING
    return r.TrainingJob(
        name=message.name,
        vplm=message.vplm,
        dataset=message.dataset,
        validation_dataset=message.validation_dataset,
        columns=columns_from_pb(message.columns),
        hyper_parameters=hyper_parameters_from_pb(message.hyper_parameters),
        base_version=message.base_version,
        promote_alias="" if alias == NO_ALIAS else alias,
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


def prediction_to_pb(prediction: r.Prediction) -> processor_pb2.Prediction:
    message = processor_pb2.Prediction(
        truncated=prediction.truncated, token_count=prediction.token_count
    )
    match prediction.result:
        case r.Classification(label, score, scores):
            message.classification.label = label
            message.classification.score = score
            for row in scores:
                message.classification.scores.add(label=row.label, score=row.score)
        case r.TokenClassification(tokens):
            message.tokens.SetInParent()
            for t in tokens:
                message.tokens.tokens.add(
                    word=t.word, start=t.start, end=t.end, label=t.label, score=t.score
                )
        case r.Embedding(values):
            message.embedding.values.extend(values)
    return message


def prediction_from_pb(message: processor_pb2.Prediction) -> r.Prediction:
    result: r.Classification | r.TokenClassification | r.Embedding
    match message.WhichOneof("result"):
        case "classification":
            found = message.classification
            scores = tuple(r.LabelScore(row.label, row.score) for row in found.scores)
            result = r.Classification(found.label, found.score, scores)
        case "tokens":
            result = r.TokenClassification(
                tuple(
                    r.TokenLabel(t.word, t.start, t.end, t.label, t.score)
                    for t in message.tokens.tokens
                )
            )
        case _:
            result = r.Embedding(tuple(message.embedding.values))
    return r.Prediction(result, message.truncated, message.token_count)


def infer_to_pb(result: r.InferResult) -> processor_pb2.InferResponse:
    timings = result.timings
    return processor_pb2.InferResponse(
        predictions=[prediction_to_pb(p) for p in result.predictions],
        version=result.version,
        digest=result.digest,
        origin=ORIGINS.to_pb(result.origin),
        timings=processor_pb2.Timings(
            queue=duration_to_pb(timings.queue_s),
            load=duration_to_pb(timings.load_s),
            compute=duration_to_pb(timings.compute_s),
            total=duration_to_pb(timings.total_s),
            batch_texts=timings.batch_texts,
            batch_vplms=timings.batch_vplms,
        ),
    )


def infer_from_pb(message: processor_pb2.InferResponse) -> r.InferResult:
    timings = message.timings
    return r.InferResult(
        predictions=tuple(prediction_from_pb(p) for p in message.predictions),
        version=message.version,
        digest=message.digest,
        origin=ORIGINS.from_pb(message.origin),
        timings=r.Timings(
            queue_s=timings.queue.ToTimedelta().total_seconds(),
            load_s=timings.load.ToTimedelta().total_seconds(),
            compute_s=timings.compute.ToTimedelta().total_seconds(),
            total_s=timings.total.ToTimedelta().total_seconds(),
            batch_texts=timings.batch_texts,
            batch_vplms=timings.batch_vplms,
        ),
    )


_STATS_FIELDS = tuple(r.ProcessorStats.__dataclass_fields__)


def stats_to_pb(stats: r.ProcessorStats) -> processor_pb2.ProcessorStats:
    return processor_pb2.ProcessorStats(**{name: getattr(stats, name) for name in _STATS_FIELDS})


def stats_from_pb(message: processor_pb2.ProcessorStats) -> r.ProcessorStats:
    values = {name: getattr(message, name) for name in _STATS_FIELDS}
    return r.ProcessorStats(**{**values, "backbones": tuple(message.backbones)})
