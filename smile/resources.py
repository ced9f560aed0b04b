"""The nouns of SMILE as frozen values, shared by the services and the SDK.

These are what domain code takes and returns and what the SDK hands to users; `smile.codec` turns
them into protobuf and back. Times are timezone-aware UTC; sizes are bytes; names are the strings
of `smile.names`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from smile.accounting import Counts, Limits, LimitUse, UsageDay
from smile.errors import SmileError
from smile.model.specs import BackboneShape, HeadSpec, ModuleSpec, PetSpec
from smile.training import (
    FULL_LEARNING_RATE,
    SERVING,
    ClassScore,
    ClassWeighting,
    ColumnMapping,
    DatasetReport,
    HyperParameters,
    JobError,
    JobProgress,
    JobState,
    Method,
    Metric,
    Optimizer,
    RowProblem,
    Schedule,
    Selection,
    Sweep,
    TrainingEvent,
    TrainingJob,
    TrainingRecord,
    TrainingStates,
    TrainingSummary,
    TrialOutcome,
    When,
    defaults_of,
)
from smile.versioning import (
    AliasMoved,
    Canary,
    Derivation,
    FieldChange,
    MetricPair,
    PublicAdapter,
    TensorDiff,
    VersionDiff,
)

__all__ = [
    "FULL_LEARNING_RATE",
    "SERVING",
    "AliasMoved",
    "ApiKey",
    "Backbone",
    "Canary",
    "ClassLatency",
    "ClassScore",
    "ClassWeighting",
    "Classification",
    "ColumnMapping",
    "Dataset",
    "DatasetFormat",
    "DatasetReport",
    "Derivation",
    "Embedding",
    "Exactness",
    "FanoutAnswer",
    "FanoutResult",
    "FieldChange",
    "HeadSpec",
    "HyperParameters",
    "InferResult",
    "JobError",
    "JobProgress",
    "JobState",
    "LabelScore",
    "Materialization",
    "Method",
    "Metric",
    "MetricPair",
    "ModuleSpec",
    "Optimizer",
    "PetSpec",
    "Prediction",
    "ProcessorStats",
    "PublicAdapter",
    "RowProblem",
    "Schedule",
    "Selection",
    "Sweep",
    "Tenant",
    "TensorDiff",
    "Timings",
    "TokenClassification",
    "TokenLabel",
    "TrainingEvent",
    "TrainingJob",
    "TrainingRecord",
    "TrainingStates",
    "TrainingSummary",
    "TrialOutcome",
    "Usage",
    "VersionDiff",
    "VersionOrigin",
    "Vplm",
    "VplmUsage",
    "VplmVersion",
    "When",
    "defaults_of",
]


class VersionOrigin(enum.StrEnum):
    """Where a version's weights come from."""

    INITIAL = "initial"
    TRAINING = "training"
    IMPORT = "import"
    ADAPTER = "adapter"


class Exactness(enum.StrEnum):
    """Whether every layer is computed, or the lower ones replaced by rows for the text's n-grams,
    looked up or computed to the same bits.
    """

    EXACT = "exact"
    MATERIALIZED = "materialized"


class DatasetFormat(enum.StrEnum):
    """How dataset bytes are laid out."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer of the platform."""

    name: str
    display_name: str = ""
    create_time: datetime | None = None
    quota_bytes: int = 0
    limits: Limits = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A credential, without its secret."""

    name: str
    display_name: str = ""
    create_time: datetime | None = None
    revoke_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen pretrained model that vPLMs share. `shape.bytes` is its size as float32."""

    name: str
    family: str
    digest: str
    shape: BackboneShape


@dataclass(frozen=True, slots=True)
class Vplm:
    """A virtual PLM: one tenant's own model. `exactness` is how it is answered where neither
    request nor rented terms say, as far as the processor can; None: exactly.
    """

    name: str
    spec: ModuleSpec
    display_name: str = ""
    aliases: Mapping[str, int] = field(default_factory=dict)
    latest_version: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None
    etag: str = ""
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    canaries: Mapping[str, Canary] = field(default_factory=dict)
    delete_time: datetime | None = None
    purge_time: datetime | None = None
    exactness: Exactness | None = None


@dataclass(frozen=True, slots=True)
class VplmVersion:
    """One immutable state of a vPLM's weights; `training` is what came of the job that made it,
    `derived_from` the public adapter it began as.

    `canary` is set where an alias was resolved that splits its traffic: the second version, and
    `canary_weight` the share of requests that it answers. `exactness` is its vPLM's as of now.
    """

    name: str
    digest: str
    size_bytes: int
    spec: ModuleSpec
    origin: VersionOrigin
    training_job: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    create_time: datetime | None = None
    note: str = ""
    canary: VplmVersion | None = None
    canary_weight: float = 0.0
    training: TrainingSummary | None = None
    derived_from: Derivation | None = None
    delete_time: datetime | None = None
    purge_time: datetime | None = None
    exactness: Exactness | None = None

    @property
    def number(self) -> int:
        return int(self.name.rpartition("/")[2])


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows a tenant trains on."""

    name: str
    format: DatasetFormat
    digest: str
    size_bytes: int
    create_time: datetime | None = None
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class VplmUsage:
    """What one vPLM stores, beside what it would take as a full model."""

    name: str
    versions: int
    size_bytes: int
    serving_bytes: int
    full_model_bytes: int
    counts: Counts = field(default_factory=Counts)
    backbone: str = ""
    backbone_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant stores, may have, and used on the days asked for. `vplms` holds one page of
    rows, whose counts are of those days."""

    name: str
    stored_bytes: int
    dataset_bytes: int
    quota_bytes: int
    vplm_count: int
    vplms: tuple[VplmUsage, ...] = ()
    next_page_token: str = ""
    limits: tuple[LimitUse, ...] = ()
    warnings: tuple[str, ...] = ()
    days: tuple[UsageDay, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its softmax probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """A text's best label; `scores` best first."""

    label: str
    score: float
    scores: tuple[LabelScore, ...]


@dataclass(frozen=True, slots=True)
class TokenLabel:
    """A word of the text, at characters [start, end), and its label."""

    word: str
    start: int
    end: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class TokenClassification:
    """The words of a text and their labels."""

    tokens: tuple[TokenLabel, ...]


@dataclass(frozen=True, slots=True)
class Embedding:
    """A unit-length vector."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One text's answer."""

    result: Classification | TokenClassification | Embedding
    truncated: bool
    token_count: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went, in seconds, and the largest batch it rode in."""

    queue_s: float
    load_s: float
    compute_s: float
    total_s: float
    batch_texts: int
    batch_vplms: int


@dataclass(frozen=True, slots=True)
class Materialization:
    """What was looked up of a materialised answer.

    Attributes:
        encoder_digest: SHA-256, hex, of the local encoder whose rows they are.
        ngrams: Of its texts, one for each token, special tokens included.
        found: Those the table had; the others were computed, to the same bits.
        domain: The vPLM's; empty: general.
        domain_digest: Of the domain's rows, SHA-256, hex; empty for general.
    """

    encoder_digest: str
    ngrams: int
    found: int
    domain: str = ""
    domain_digest: str = ""

    @property
    def found_share(self) -> float:
        """0 to 1."""
        return self.found / self.ngrams if self.ngrams else 0.0

    def __add__(self, other: Materialization) -> Materialization:
        """Of both together."""
        return replace(self, ngrams=self.ngrams + other.ngrams, found=self.found + other.found)


@dataclass(frozen=True, slots=True)
class InferResult:
    """Answers in the order of the texts, the immutable version that gave them, and how:
    `materialization` is None for an exact answer.
    """

    predictions: tuple[Prediction, ...]
    version: str
    digest: str
    origin: VersionOrigin
    timings: Timings
    materialization: Materialization | None = None

    @property
    def exactness(self) -> Exactness:
        """How it was answered."""
        return _exactness(self.materialization)


@dataclass(frozen=True, slots=True)
class FanoutAnswer:
    """What one vPLM answered, the immutable version that gave it, and how, as `InferResult`."""

    prediction: Prediction
    version: str
    digest: str
    origin: VersionOrigin
    materialization: Materialization | None = None

    @property
    def exactness(self) -> Exactness:
        """How it was answered."""
        return _exactness(self.materialization)


@dataclass(frozen=True, slots=True)
class FanoutResult:
    """An answer or an error for each vPLM asked, in their order."""

    entries: tuple[FanoutAnswer | SmileError, ...]
    timings: Timings

    @property
    def answers(self) -> tuple[FanoutAnswer, ...]:
        """All answers.

        Raises:
            SmileError: the first vPLM's that could not answer.
        """
        for entry in self.entries:
            if isinstance(entry, SmileError):
                raise entry
        return tuple(entry for entry in self.entries if not isinstance(entry, SmileError))


@dataclass(frozen=True, slots=True)
class ClassLatency:
    """How long answered requests of a class of tenants took: about p50 and p99, in seconds."""

    tenant_class: str
    requests: int
    p50_seconds: float
    p99_seconds: float


@dataclass(frozen=True, slots=True)
class ProcessorStats:
    """Counts since start and levels now; see `processor.proto` for units."""

    backbones: tuple[str, ...]
    queue_texts: int
    queue_texts_max: int
    modules_resident: int
    modules_bytes: int
    modules_bytes_max: int
    requests_total: int
    texts_total: int
    batches_total: int
    requests_refused_total: int
    module_hits_total: int
    module_loads_total: int
    module_evictions_total: int
    batch_texts_mean: float
    batch_vplms_mean: float
    compute_seconds_total: float
    module_misses_total: int = 0
    module_unloads_total: int = 0
    device_modules: int = 0
    device_bytes: int = 0
    device_bytes_max: int = 0
    device_hits_total: int = 0
    device_loads_total: int = 0
    device_evictions_total: int = 0
    batch_tokens_mean: float = 0.0
    padding_share: float = 0.0
    prepare_seconds_total: float = 0.0
    queue_seconds_mean: float = 0.0
    load_seconds_mean: float = 0.0
    loop_lag_seconds_max: float = 0.0
    prediction_ratio_mean: float = 0.0
    processors_rented: int = 0
    ngrams_total: int = 0
    ngrams_found_total: int = 0
    ngram_rows_computed_total: int = 0
    ngram_rows: int = 0
    ngram_rows_bytes: int = 0
    requests_by_outcome: Mapping[str, int] = field(default_factory=dict)
    batches_by_close: Mapping[str, int] = field(default_factory=dict)
    latencies: tuple[ClassLatency, ...] = ()


def _exactness(materialization: Materialization | None) -> Exactness:
    return Exactness.EXACT if materialization is None else Exactness.MATERIALIZED
