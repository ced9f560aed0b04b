"""The nouns of training, as frozen values. `smile.resources` has them all, with the other nouns."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

SERVING = "serving"


class JobState(enum.StrEnum):
    """Life of a training job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def done(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Optimizer(enum.StrEnum):
    """Optimization algorithm."""

    ADAMW = "adamw"
    ADAM = "adam"
    SGD = "sgd"
    ADAFACTOR = "adafactor"


class When(enum.StrEnum):
    """When a job may run."""

    NOW = "now"
    OFF_PEAK = "off_peak"  # in the operator's windows; it yields at their ends


class Method(enum.StrEnum):
    """What of a vPLM a job trains."""

    PET = "pet"  # its PET module and head
    FULL = "full"  # every weight of the backbone, and the head: to export, never served


class Schedule(enum.StrEnum):
    """How the learning rate moves after warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class ClassWeighting(enum.StrEnum):
    """How much each class counts in the loss."""

    UNIFORM = "uniform"  # every row as much as every other
    BALANCED = "balanced"  # every class as much as every other


class Selection(enum.StrEnum):
    """The validation metric by which the best epoch is chosen, and early stopping decides."""

    TASK = "task"  # the task's own: accuracy, entity F1 where there are entities, or recall at 1
    LOSS = "loss"
    ACCURACY = "accuracy"
    MACRO_F1 = "macro_f1"
    ENTITY_F1 = "entity_f1"


class TrainingStates(enum.StrEnum):
    """What stands below a module's first layer while it is trained."""

    EXACT = "exact"  # the backbone's own lower layers
    MATERIALIZED = "materialized"  # rows of n-grams, as materialised answers have them
    MIXED = "mixed"  # each row of an epoch drawn, by the seed, from one of the two


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """Which columns of a dataset hold what. `pair` set means embedding training on pairs."""

    text: str = "text"
    label: str = "label"
    pair: str = ""


@dataclass(frozen=True, slots=True)
class HyperParameters:
    """How to train; the defaults are the platform's. `tokens_max` 0 means the backbone's limit.

    `class_weights` names labels and replaces what `class_weighting` gives them.
    """

    epochs: int = 5
    learning_rate: float = 2e-3
    schedule: Schedule = Schedule.LINEAR
    batch_size: int = 32
    optimizer: Optimizer = Optimizer.ADAMW
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    seed: int = 0
    early_stopping_epochs: int = 0
    validation_ratio: float = 0.1
    tokens_max: int = 0
    gradient_norm_max: float = 1.0
    momentum: float = 0.9
    accumulation_batches: int = 1
    class_weighting: ClassWeighting = ClassWeighting.UNIFORM
    class_weights: Mapping[str, float] = field(default_factory=dict)
    early_stopping_delta: float = 0.0
    selection: Selection = Selection.TASK
    states: TrainingStates = TrainingStates.EXACT


FULL_LEARNING_RATE = 5e-5  # as Devlin et al. 2019 fine-tune


def defaults_of(method: Method) -> HyperParameters:
    """The platform's hyper-parameters: a whole model wants far smaller steps than a module."""
    if method is Method.FULL:
        return HyperParameters(learning_rate=FULL_LEARNING_RATE)
    return HyperParameters()


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One row problem; row 0 is the dataset as a whole."""

    row: int
    column: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a dataset holds, as a job would read it. `problems` holds the first 100."""

    rows: int
    valid_rows: int
    problems: tuple[RowProblem, ...] = ()
    problem_count: int = 0
    label_counts: Mapping[str, int] = field(default_factory=dict)
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobError:
    """A failure a person can act on."""

    reason: str
    message: str
    dataset_report: DatasetReport | None = None


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Where a running job is."""

    phase: str = ""
    step: int = 0
    steps_total: int = 0
    epoch: int = 0
    epochs_total: int = 0
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class against all others. `support` counts its true members."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What came of a training, measured on validation rows, and what it takes to repeat it.

    Attributes:
        classes: A row per class; none for embeddings and without validation rows.
        confusion: `confusion[true][predicted]` counts, in the order of `classes`; none for more
            than 100 classes.
        entities: A row per type of entity, whole spans (IOB2), where labels are of that form.
        seed: Of split, order and initial weights.
        spec_digest: SHA-256, hex, of all that decides the weights: vPLM, rows, hyper-parameters.
        environment: Versions, processor and threads, by name: where they are the same, the same
            spec gives the same weights, bit for bit.
        states: What stood below the first layer.
        encoder_digest: Of the local encoder behind states that are not exact.
        domain: Whose rows they are; empty: general ones alone.
        domain_digest: Of the domain's table, which names its parent's, and so on; answers tell the
            same where they stand on the same.
    """

    classes: tuple[ClassScore, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    entities: tuple[ClassScore, ...] = ()
    seed: int = 0
    spec_digest: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    states: TrainingStates = TrainingStates.EXACT
    encoder_digest: str = ""
    domain: str = ""
    domain_digest: str = ""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """What came of one trial: its job, the metric compared (None until it has succeeded), and the
    version it made."""

    job: str
    state: JobState
    value: float | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Several trainings of one vPLM on the same rows, each a job of its own, to find the best.

    Attributes:
        trials: What each trains with.
        concurrency_max: Trials queued or running at a time.
        metric: The one compared; of a loss, less is better.
        outcomes: Of the trials begun so far, in their order.
        best: Number of the best trial, from 1; 0 until one has succeeded.
        stopping: It was asked to stop: no more trials begin.
    """

    trials: tuple[HyperParameters, ...]
    concurrency_max: int = 2
    metric: str = ""
    outcomes: tuple[TrialOutcome, ...] = ()
    best: int = 0
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training job. `promote_alias` empty moves no alias on success; jobs of higher `priority` go
    before the tenant's others. Position and estimated start are those of a job that waits. A job
    with a `sweep` trains nothing itself; its trials name it as their `parent_job`. What method full
    makes is never served, so it moves no alias.
    """

    name: str
    vplm: str
    dataset: str
    validation_dataset: str = ""
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    hyper_parameters: HyperParameters = field(default_factory=HyperParameters)
    base_version: int = 0
    promote_alias: str = SERVING
    when: When = When.NOW
    priority: int = 0
    state: JobState = JobState.QUEUED
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    version: str = ""
    error: JobError | None = None
    progress: JobProgress = field(default_factory=JobProgress)
    metrics: Mapping[str, float] = field(default_factory=dict)
    attempt: int = 0
    queue_position: int = 0
    summary: TrainingSummary | None = None
    estimated_start_time: datetime | None = None
    sweep: Sweep | None = None
    parent_job: str = ""
    method: Method = Method.PET


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """A job as storage keeps it, with the fence of its last writer."""

    job: TrainingJob
    fence: int = 0


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured value at one step (from 1)."""

    name: str
    value: float
    step: int
    epoch: int


@dataclass(frozen=True, slots=True)
class TrainingEvent:
    """One event of a job: the job after a change, or the metrics of a step."""

    resume_token: str
    time: datetime | None = None
    job: TrainingJob | None = None
    metrics: tuple[Metric, ...] = ()
