"""Settings of the trainer and its workers, from `SMILE_TRAINER_*` and the shared variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from services.trainer.metering import FULL_FACTOR_DEFAULT, PEAK_FACTOR_DEFAULT
from services.trainer.queueing.queue import QueueSettings
from services.trainer.queueing.turns import Share, Shares
from services.trainer.queueing.windows import Windows
from services.trainer.training.precision import Precision
from services.trainer.whole import FullLimits
from smile import limits
from smile.backbone_config import BackboneServiceSettings
from smile.errors import SmileError
from smile.names import ArtifactName
from smile.standins import StandInPlace, artifacts_in, parse_stand_ins
from smile.store.redis import connect

PORT_DEFAULT = 7103
REDIS_URL_DEFAULT = "redis://127.0.0.1:6379/0"


class TrainerSettings(BackboneServiceSettings):
    """What the trainer and its workers need to know.

    Attributes:
        workers: Worker processes kept alive by the service; 0 where workers run elsewhere.
        jobs: Small jobs of one backbone that one worker runs at once; others it runs alone.
        shared_bytes_max: Largest datasets of a job that counts as small.
        threads: CPU threads of one job; 0 shares the machine's cores among all.
        lease_s: How long a worker that fell silent keeps its job.
        jobs_queued_max: Waiting jobs of one tenant.
        jobs_running_max: Jobs of one tenant that workers hold at a time.
        shares: Tenants' own terms, like `acme=weight:3;running:2;queued:500`, by comma.
        off_peak: Windows of jobs that can wait, like `mon-fri 22:00-06:00`, by comma.
        time_zone: Where those hours are told.
        states_bytes_max: Memory of a worker for texts' states kept between epochs.
        states_disk_bytes_max: Disk of a worker, in `folder`, for those that memory does not hold.
        precision: In what frozen weights compute; what is trained is float32 either way.
        skip: Local encoders that stand in for lower layers where jobs ask for it,
            `backbone=/file,...`, `backbone=artifacts/id` or `backbone=included`; none: all states
            are exact.
        tables: Snapshots of tables of their rows, `backbone=/folder,...` or
            `backbone=artifacts/id`; a backbone without one has all rows computed.
        domains: Folders of domains over these rows, `backbone=/folder,...` or
            `backbone=artifacts/id`; vPLMs of other domains train on exact states alone.
        validate_bytes_max: Largest dataset that ValidateDataset reads.
        validations_max: Datasets read by ValidateDataset at a time.
        checkpoint_s: How often a running job's place is kept, from which another worker goes on.
        peak_factor: What a second of a `now` job costs outside the windows; any other costs 1.
        full_factor: What a second of training a whole model costs beside that of a module.
        full_jobs_max: A tenant's jobs of method full that have not ended; 0: nobody trains such.
        full_bytes_max: Memory of a worker for training a whole model.
        usage_report_s: How often storage is told what jobs cost.
        reconcile_s: How often records are compared with the queue.
        folder: Where datasets are kept while they are read, and states; empty means the system's
            choice.
    """

    model_config = SettingsConfigDict(
        env_prefix="SMILE_TRAINER_", frozen=True, extra="ignore", populate_by_name=True
    )

    port: int = Field(default=PORT_DEFAULT, ge=0, le=65_535)
    redis_url: SecretStr = Field(
        default=SecretStr(REDIS_URL_DEFAULT), validation_alias="SMILE_REDIS_URL"
    )
    workers: int = Field(default=1, ge=0, le=256)
    jobs: int = Field(default=1, ge=1, le=64)
    shared_bytes_max: int = Field(default=16 * limits.MIB, ge=0)
    threads: int = Field(default=0, ge=0, le=1024)
    lease_s: float = Field(default=60.0, ge=1.0, le=3600.0)
    jobs_queued_max: int = Field(default=limits.TENANT_JOBS_QUEUED_MAX, ge=1, le=100_000)
    jobs_running_max: int = Field(default=1000, ge=1, le=100_000)
    shares: str = Field(default="")
    off_peak: str = Field(default="mon-sun 22:00-06:00")
    time_zone: str = Field(default="UTC")
    states_bytes_max: int = Field(default=32 * limits.MIB, ge=0)
    states_disk_bytes_max: int = Field(default=16 * limits.GIB, ge=0)
    precision: Precision = Field(default=Precision.FLOAT32)
    skip: str = ""
    tables: str = ""
    domains: str = ""
    validate_bytes_max: int = Field(default=256 * limits.MIB, ge=1)
    validations_max: int = Field(default=2, ge=1, le=64)
    checkpoint_s: float = Field(default=30.0, ge=0.0, le=3600.0)
    peak_factor: float = Field(default=PEAK_FACTOR_DEFAULT, ge=1.0, le=100.0)
    full_factor: float = Field(default=FULL_FACTOR_DEFAULT, ge=1.0, le=1000.0)
    full_jobs_max: int = Field(default=limits.TENANT_FULL_JOBS_MAX, ge=0, le=1000)
    full_bytes_max: int = Field(default=limits.FULL_TRAINING_BYTES_MAX, ge=0)
    usage_report_s: float = Field(default=10.0, ge=0.1, le=3600.0)
    reconcile_s: float = Field(default=60.0, ge=0.1, le=3600.0)
    folder: Path | None = Field(default=None)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        try:
            connect(value.get_secret_value())
        except SmileError as error:
            raise ValueError(error.message) from None
        return value

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"no directory {value}")
        return value

    @property
    def stand_ins(self) -> Mapping[str, StandInPlace]:
        """What stands in for lower layers, by backbone."""
        return parse_stand_ins(self.skip, self.tables, self.artifacts, self.domains)

    @property
    def full(self) -> FullLimits:
        """What whole models may have."""
        return FullLimits(self.full_jobs_max, self.full_bytes_max)

    @property
    def artifacts_wanted(self) -> tuple[ArtifactName, ...]:
        """Those that stand-ins are made of."""
        return artifacts_in(self.skip, self.tables, self.domains)

    @property
    def queue(self) -> QueueSettings:
        return QueueSettings(
            lease_s=self.lease_s,
            shares=Shares.parse(self.shares, self._share_of_all),
            windows=Windows.parse(self.off_peak, self.time_zone),
        )

    @property
    def _share_of_all(self) -> Share:
        return Share(running_max=self.jobs_running_max, queued_max=self.jobs_queued_max)

    @model_validator(mode="after")
    def _check_stand_ins(self) -> Self:
        told = (
            f"SMILE_TRAINER_SKIP={self.skip}, SMILE_TRAINER_TABLES={self.tables}, "
            f"SMILE_TRAINER_DOMAINS={self.domains}"
        )
        try:
            found = self.stand_ins
        except SmileError as error:
            raise ValueError(f"{told}: {error.message}") from None
        if unknown := sorted(found.keys() - {source.name for source in self.sources}):
            raise ValueError(f"{told}: there is no backbone '{unknown[0]}'")
        return self

    @model_validator(mode="after")
    def _check_queue(self) -> Self:
        Shares.parse(self.shares, self._share_of_all)
        Windows.parse(self.off_peak, self.time_zone)
        return self
