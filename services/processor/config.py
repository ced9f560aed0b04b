"""Settings of the processor, from `SMILE_PROCESSOR_*` and the shared variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.processor.lanes.sequence import Execution
from services.processor.materialize.options import (
    INCLUDED,
    LearningOptions,
    StandInPlace,
    parse_places,
)
from services.processor.options import (
    Device,
    EngineOptions,
    Eviction,
    KernelSource,
    MemoryOptions,
    Precision,
)
from services.processor.rentals import RentalLimits
from services.processor.requests import SLICES_MAX, ChunkLimits
from services.processor.scheduling.admission import QueueLimits
from services.processor.scheduling.room import BatchLimits
from smile import limits
from smile.backbone_config import BackboneServiceSettings
from smile.errors import SmileError
from smile.names import ArtifactName
from smile.representations.traffic import TENANTS_MIN_MAX, CountRules
from smile.standins import artifacts_in, parse_stand_ins

PORT_DEFAULT = 7104
MODULE_IN_MEMORY_MAX = 3 * limits.MODULE_BYTES_MAX  # half precision stored, single in use, padded
STREAMS_MAX = 8  # where nobody says; more threads of one interpreter mostly wait for each other
CHUNKS_PER_BATCH = 8  # a batch holds several tenants' chunks even where each sends long ones


class ProcessorSettings(BackboneServiceSettings):
    """What the processor needs to know.

    How to choose: `batch_tokens_max` is the longest others wait for a batch (at the device's tokens
    per second); `queue_tokens_max` is the longest anyone waits at all before being refused;
    `host_bytes_max` is the memory left beside backbones, and wants to hold the working set.

    Attributes:
        queue_texts_max: Texts inside, queued and being computed, of all tenants.
        queue_tokens_max: Their tokens.
        queue_tenant_share: Part of both that one tenant may hold.
        batch_ms_max: Predicted milliseconds of a batch. Larger batches suit the device better, and
            whoever comes next waits for one.
        batch_shared_ms_max: The same for what tenants that ask for more than a batch holds add
            while others are about, where their batches do not give way (`bulk`).
        batch_tokens_max: Tokens computed in one go.
        batch_texts_max: Texts computed in one go.
        batch_wait_ms_max: How long a batch that is not full waits for company.
        host_bytes_max: Host memory for modules.
        device_bytes_max: Device memory for modules; 0 is as much as the host's. A CPU reads the
            host's memory: there it bounds how many modules count as hot.
        disk_bytes_max: Local disk for modules that host memory had no room for; 0 for none.
        disk_folder: Where on local disk; None: where the system keeps temporary files.
        pinned_share: Part of both that modules rented hot may take.
        eviction: Which modules leave memory first.
        module_idle_s: How long a module nobody uses stays in memory.
        module_failed_s: How long a module that could not be loaded is not tried again.
        module_loads_max: Modules loaded at a time.
        batches_ahead: Batches prepared beyond those that streams compute.
        execution: Whether micro-batches overlap.
        trace: File to write a trace of the lanes to, at the end and on SIGUSR1; None for none.
        resolve_ttl_s: How long a moved alias or a deleted vPLM may go unseen.
        metrics_port: Where Prometheus finds metrics; 0: nowhere.
        usage_report_s: How often storage is told what tenants used.
        rentals_max: Processors that all tenants together may rent.
        rentals_tenant_max: Processors that one tenant may rent.
        rental_idle_s: How long a rented vPLM stays in memory without a request, where its terms do
            not say.
        calibration_s: Seconds that measuring a backbone may take at start; 0 measures nothing, and
            batches are bounded by tokens and texts alone.
        latency_cache: Folder that keeps what was measured; None for `.cache/smile/latency` in the
            user's home.
        device: `cpu` or `cuda`.
        precision: `float32` or `bfloat16`: of the backbone's weights, modules and states.
        kernels: `auto` (native where a compiler or a library is at hand), `native`, `eager`.
        streams: Batches computed side by side; 0: on a CPU one for each core, up to 8.
        bulk: Whether batches of tenants that ask for more than a batch holds are computed beside
            others', in as many threads more, and give way to them; on a CPU only.
        threads: CPU threads of a stream; 0: cores divided by streams.
        tokenizer_threads: Threads that tokenise and decode modules.
        skip: Local encoders that stand in for lower layers, `backbone=/file,...`, or of storage's
            catalogue `backbone=artifacts/id`; none: every layer is always computed.
        tables: Snapshots of tables of their rows, `backbone=/folder,...` or
            `backbone=artifacts/id`; a backbone without one has all rows computed.
        domains: Folders of domains over these rows, `backbone=/folder,...` or
            `backbone=artifacts/id`.
        learn: Whether rows that traffic asks for often are kept, too.
        learn_bytes_max: Memory for these, of each backbone.
        learn_tenants_min: N-grams that fewer tenants asked for are never learned.
        learn_count_min: Nor are those asked for less often, questions of six hours ago counting
            half.
        learn_s: Seconds from one round of learning to the next, in which a newer snapshot is
            looked for as well.
        cache_redis_url: Redis through which processors tell one another what they learned.
    """

    model_config = SettingsConfigDict(
        env_prefix="SMILE_PROCESSOR_", frozen=True, extra="ignore", populate_by_name=True
    )

    port: int = Field(default=PORT_DEFAULT, ge=0, le=65_535)
    max_message_bytes: int = Field(
        default=limits.PROCESSOR_MESSAGE_BYTES_MAX, ge=limits.KIB, le=256 * limits.MIB
    )
    queue_texts_max: int = Field(default=40_000, ge=1, le=10_000_000)
    queue_tokens_max: int = Field(default=2_000_000, ge=1, le=1_000_000_000)
    queue_tenant_share: float = Field(default=0.5, gt=0.0, le=1.0)
    batch_ms_max: float = Field(default=200.0, ge=0.1, le=60_000.0)
    batch_shared_ms_max: float = Field(default=25.0, ge=0.1, le=60_000.0)
    batch_tokens_max: int = Field(default=1_024, ge=16, le=1_000_000)
    batch_texts_max: int = Field(default=64, ge=1, le=100_000)
    batch_wait_ms_max: float = Field(default=1.0, ge=0.0, le=100.0)
    host_bytes_max: int = Field(
        default=512 * limits.MIB,
        ge=1,
        validation_alias=AliasChoices(
            "SMILE_PROCESSOR_HOST_BYTES_MAX",
            "SMILE_PROCESSOR_MODULES_BYTES_MAX",  # its name before there were two tiers
        ),
    )
    device_bytes_max: int = Field(default=0, ge=0)
    disk_bytes_max: int = Field(default=2 * limits.GIB, ge=0)
    disk_folder: Path | None = None
    pinned_share: float = Field(default=0.5, ge=0.0, le=0.9)
    eviction: Eviction = Eviction.S3_FIFO
    module_idle_s: float = Field(default=3_600.0, ge=1.0)
    module_failed_s: float = Field(default=2.0, ge=0.0, le=60.0)
    module_loads_max: int = Field(default=4, ge=1, le=64)
    batches_ahead: int = Field(default=1, ge=0, le=16)
    execution: Execution = Execution.PIPELINED
    trace: Path | None = None
    resolve_ttl_s: float = Field(default=2.0, gt=0.0, le=60.0)
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    usage_report_s: float = Field(default=10.0, ge=0.1, le=3600.0)
    rentals_max: int = Field(default=100_000, ge=1, le=10_000_000)
    rentals_tenant_max: int = Field(default=10_000, ge=1, le=10_000_000)
    rental_idle_s: float = Field(default=600.0, ge=1.0)
    calibration_s: float = Field(default=2.0, ge=0.0, le=600.0)
    latency_cache: Path | None = None
    device: Device = Device.CPU
    precision: Precision = Precision.FLOAT32
    kernels: KernelSource = KernelSource.AUTO
    streams: int = Field(default=0, ge=0, le=64)
    bulk: bool = True
    threads: int = Field(default=0, ge=0, le=1_024)
    tokenizer_threads: int = Field(default=2, ge=1, le=64)
    skip: str = ""
    tables: str = ""
    domains: str = ""
    learn: bool = True
    learn_bytes_max: int = Field(default=64 * limits.MIB, ge=limits.MIB)
    learn_tenants_min: int = Field(default=3, ge=1, le=TENANTS_MIN_MAX)
    learn_count_min: float = Field(default=8.0, ge=1.0, le=1e9)
    learn_s: float = Field(default=5.0, ge=0.05, le=3_600.0)
    cache_redis_url: SecretStr | None = None

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        prefix = "SMILE_PROCESSOR_"
        share = self.queue_limits.tenant
        if share.texts < limits.INFER_TEXTS_MAX:
            raise ValueError(
                f"{prefix}QUEUE_TEXTS_MAX={self.queue_texts_max} times {prefix}QUEUE_TENANT_SHARE="
                f"{self.queue_tenant_share} must hold one request of {limits.INFER_TEXTS_MAX} texts"
            )
        if share.tokens < self.batch_tokens_max:
            raise ValueError(
                f"{prefix}QUEUE_TOKENS_MAX={self.queue_tokens_max} times "
                f"{prefix}QUEUE_TENANT_SHARE={self.queue_tenant_share} must hold a batch of "
                f"{self.batch_tokens_max} tokens"
            )
        self._check_memory(prefix)
        self._check_stand_ins(prefix)
        return self

    def _check_memory(self, prefix: str) -> None:
        memory = self.memory_options
        for name, limit in (
            (f"HOST_BYTES_MAX={memory.host_bytes_max}", memory.host_bytes_max),
            (f"DEVICE_BYTES_MAX={memory.device_bytes_max}", memory.device_bytes_max),
        ):
            if limit * (1 - self.pinned_share) < MODULE_IN_MEMORY_MAX:
                raise ValueError(
                    f"{prefix}{name} must hold the largest module, {MODULE_IN_MEMORY_MAX} bytes, "
                    f"beside what {prefix}PINNED_SHARE={self.pinned_share} may pin"
                )

    def _check_stand_ins(self, prefix: str) -> None:
        served = {source.name for source in self.sources}
        encoders = self._places(f"{prefix}SKIP", self.skip, INCLUDED, cache=self.artifacts)
        for name, given, known in (
            (f"{prefix}SKIP={self.skip}", encoders, served),
            (
                f"{prefix}TABLES={self.tables}",
                self._places(f"{prefix}TABLES", self.tables, cache=self.artifacts),
                encoders,
            ),
            (
                f"{prefix}DOMAINS={self.domains}",
                self._places(f"{prefix}DOMAINS", self.domains, cache=self.artifacts),
                encoders,
            ),
        ):
            if unknown := sorted(set(given) - set(known)):
                what = "is not served" if known is served else "has no local encoder"
                raise ValueError(f"{name}: backbone '{unknown[0]}' {what}")

    @staticmethod
    def _places(
        name: str, text: str, *words: Path, cache: Path | None = None
    ) -> Mapping[str, Path]:
        try:
            return parse_places(text, *words, cache=cache)
        except SmileError as error:
            raise ValueError(f"{name}: {error.message}") from None

    @property
    def stand_ins(self) -> Mapping[str, StandInPlace]:
        """What stands in for lower layers, by backbone."""
        return parse_stand_ins(self.skip, self.tables, self.artifacts, self.domains)

    @property
    def artifacts_wanted(self) -> tuple[ArtifactName, ...]:
        """Those that stand-ins are made of."""
        return artifacts_in(self.skip, self.tables, self.domains)

    @property
    def learning(self) -> LearningOptions:
        """What is learned from traffic."""
        rules = CountRules(tenants_min=self.learn_tenants_min, count_min=self.learn_count_min)
        return LearningOptions(self.learn, self.learn_bytes_max, self.learn_s, rules)

    @property
    def engine_options(self) -> EngineOptions:
        threads = self.threads
        if not threads and self.device is Device.CPU:
            threads = max(1, _cores() // self.stream_count)
        return EngineOptions(
            self.sources,
            self.device,
            threads,
            self.precision,
            self.kernels,
            self.stand_ins,
            self.learning,
        )

    @property
    def stream_count(self) -> int:
        """Batches computed side by side; one at a time where execution is sequential."""
        if self.sequential or (self.device is not Device.CPU and not self.streams):
            return 1
        return self.streams or min(_cores(), STREAMS_MAX)

    @property
    def bulk_stream_count(self) -> int:
        """Batches computed beside these that give way to them."""
        apart = self.bulk and self.device is Device.CPU and not self.sequential
        return self.stream_count if apart else 0

    @property
    def memory_options(self) -> MemoryOptions:
        return MemoryOptions(
            host_bytes_max=self.host_bytes_max,
            device_bytes_max=self.device_bytes_max or self.host_bytes_max,
            pinned_share=self.pinned_share,
            eviction=self.eviction,
            disk_bytes_max=self.disk_bytes_max,
            disk_folder=self.disk_folder,
        )

    @property
    def queue_limits(self) -> QueueLimits:
        return QueueLimits(self.queue_texts_max, self.queue_tokens_max, self.queue_tenant_share)

    @property
    def batch_limits(self) -> BatchLimits:
        return BatchLimits(
            tokens_max=self.batch_tokens_max,
            texts_max=self.batch_texts_max,
            quantum_tokens=self.batch_tokens_max // CHUNKS_PER_BATCH,
            seconds_max=self.batch_ms_max / 1e3,
            shared_seconds_max=self.batch_shared_ms_max / 1e3,
            bulk_batches_max=self.bulk_stream_count and self.bulk_stream_count + self.batches_ahead,
        )

    @property
    def ahead_tokens_max(self) -> int:
        """What a tenant may be ahead of its share: two rounds and a chunk."""
        limits = self.batch_limits
        return 2 * limits.quantum_tokens + self.chunk_limits.chunk_tokens_max

    @property
    def latency_folder(self) -> Path:
        """Where latency tables are kept."""
        return self.latency_cache or Path("~/.cache/smile/latency").expanduser()

    @property
    def metrics_at(self) -> tuple[str, int]:
        """Host and port of the metrics."""
        return self.host, self.metrics_port

    @property
    def rental_limits(self) -> RentalLimits:
        return RentalLimits(self.rentals_max, self.rentals_tenant_max, self.rental_idle_s)

    @property
    def chunk_limits(self) -> ChunkLimits:
        return ChunkLimits(
            chunk_texts_max=max(1, self.batch_texts_max // CHUNKS_PER_BATCH),
            chunk_tokens_max=self.batch_tokens_max // CHUNKS_PER_BATCH,
            answer_bytes_max=self.max_message_bytes,
            module_texts_max=self._module_texts_max,
            slices_max=1 if self.sequential else SLICES_MAX,
        )

    @property
    def sequential(self) -> bool:
        return self.execution is Execution.SEQUENTIAL

    @property
    def _module_texts_max(self) -> int:
        """What all batches that are prepared and computed at a time may hold. Where requests enter
        a batch together, whoever has entered is waited for, and must not wait itself.
        """
        if self.sequential:
            return self.queue_texts_max
        batches = self.in_flight_max + self.batch_limits.bulk_batches_max
        return batches * self.batch_texts_max

    @property
    def in_flight_max(self) -> int:
        return 1 if self.sequential else self.stream_count + self.batches_ahead


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
