"""SMILE: thousands of tenants' own language models from one machine.

    import smile

    with smile.Client(api_key="smile_acme_...") as client:
        client.create_vplm(
            "topic", backbone="minilm", pet=smile.Pfeiffer(rank=24), labels=["business", "sport"]
        )
        client.upload_dataset("news", "news.csv")
        job = client.wait(client.train("topic", "news", epochs=4))
        answer = client.infer("topic", "Shares rose on Friday").predictions[0].result.label

`AsyncClient` has the same methods for `await`. Results are frozen dataclasses, errors the classes
of `smile.errors`. Names are loaded when first used, so that importing a part stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smile.client.account import NewApiKey, NewTenant
    from smile.client.client import AsyncClient
    from smile.client.options import (
        FanoutOptions,
        InferOptions,
        RentOptions,
        TrainOptions,
        VplmOptions,
    )
    from smile.client.pets import (
        BitFit,
        DiffPruning,
        Houlsby,
        LoRA,
        MaskBert,
        NoPet,
        Pfeiffer,
    )
    from smile.client.settings import Endpoints
    from smile.client.sync import Client
    from smile.client.training import JobFailed
    from smile.errors import (
        Aborted,
        AlreadyExists,
        Cancelled,
        DataCorrupted,
        DatasetInvalid,
        DeadlineExceeded,
        DeadlineRequired,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        InvalidName,
        InvalidSpec,
        NotFound,
        Overloaded,
        PermissionDenied,
        QuotaExceeded,
        SmileError,
        TextEmpty,
        TextTooLong,
        TooManyTexts,
        Unauthenticated,
        Unavailable,
    )
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
    from smile.processors import Processor, ProcessorCounters, ProcessorState, ProcessorTerms
    from smile.resources import (
        SERVING,
        ApiKey,
        Backbone,
        Canary,
        Classification,
        ClassLatency,
        ColumnMapping,
        Dataset,
        DatasetFormat,
        DatasetReport,
        Embedding,
        FanoutAnswer,
        FanoutResult,
        HyperParameters,
        InferResult,
        JobError,
        JobProgress,
        JobState,
        LabelScore,
        Metric,
        Optimizer,
        Prediction,
        ProcessorStats,
        RowProblem,
        Schedule,
        Tenant,
        Timings,
        TokenClassification,
        TokenLabel,
        TrainingEvent,
        TrainingJob,
        Usage,
        VersionOrigin,
        Vplm,
        VplmUsage,
        VplmVersion,
    )

__version__ = "0.1.0"

_HOMES: dict[str, tuple[str, ...]] = {
    "smile.client.account": ("NewApiKey", "NewTenant"),
    "smile.client.client": ("AsyncClient",),
    "smile.client.options": (
        "FanoutOptions",
        "InferOptions",
        "RentOptions",
        "TrainOptions",
        "VplmOptions",
    ),
    "smile.client.pets": (
        "BitFit",
        "DiffPruning",
        "Houlsby",
        "LoRA",
        "MaskBert",
        "NoPet",
        "Pfeiffer",
    ),
    "smile.client.settings": ("Endpoints",),
    "smile.client.sync": ("Client",),
    "smile.client.training": ("JobFailed",),
    "smile.errors": (
        "Aborted",
        "AlreadyExists",
        "Cancelled",
        "DataCorrupted",
        "DatasetInvalid",
        "DeadlineExceeded",
        "DeadlineRequired",
        "FailedPrecondition",
        "Internal",
        "InvalidArgument",
        "InvalidName",
        "InvalidSpec",
        "NotFound",
        "Overloaded",
        "PermissionDenied",
        "QuotaExceeded",
        "SmileError",
        "TextEmpty",
        "TextTooLong",
        "TooManyTexts",
        "Unauthenticated",
        "Unavailable",
    ),
    "smile.model.specs": (
        "BackboneShape",
        "DType",
        "HeadSpec",
        "ModuleSpec",
        "PetKind",
        "PetSpec",
        "Pooling",
        "Projection",
        "Task",
    ),
    "smile.processors": (
        "Processor",
        "ProcessorCounters",
        "ProcessorState",
        "ProcessorTerms",
    ),
    "smile.resources": (
        "SERVING",
        "ApiKey",
        "Backbone",
        "Canary",
        "ClassLatency",
        "Classification",
        "ColumnMapping",
        "Dataset",
        "DatasetFormat",
        "DatasetReport",
        "Embedding",
        "FanoutAnswer",
        "FanoutResult",
        "HyperParameters",
        "InferResult",
        "JobError",
        "JobProgress",
        "JobState",
        "LabelScore",
        "Metric",
        "Optimizer",
        "Prediction",
        "ProcessorStats",
        "RowProblem",
        "Schedule",
        "Tenant",
        "Timings",
        "TokenClassification",
        "TokenLabel",
        "TrainingEvent",
        "TrainingJob",
        "Usage",
        "VersionOrigin",
        "Vplm",
        "VplmUsage",
        "VplmVersion",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "SERVING",
    "Aborted",
    "AlreadyExists",
    "ApiKey",
    "AsyncClient",
    "Backbone",
    "BackboneShape",
    "BitFit",
    "Canary",
    "Cancelled",
    "ClassLatency",
    "Classification",
    "Client",
    "ColumnMapping",
    "DType",
    "DataCorrupted",
    "Dataset",
    "DatasetFormat",
    "DatasetInvalid",
    "DatasetReport",
    "DeadlineExceeded",
    "DeadlineRequired",
    "DiffPruning",
    "Embedding",
    "Endpoints",
    "FailedPrecondition",
    "FanoutAnswer",
    "FanoutOptions",
    "FanoutResult",
    "HeadSpec",
    "Houlsby",
    "HyperParameters",
    "InferOptions",
    "InferResult",
    "Internal",
    "InvalidArgument",
    "InvalidName",
    "InvalidSpec",
    "JobError",
    "JobFailed",
    "JobProgress",
    "JobState",
    "LabelScore",
    "LoRA",
    "MaskBert",
    "Metric",
    "ModuleSpec",
    "NewApiKey",
    "NewTenant",
    "NoPet",
    "NotFound",
    "Optimizer",
    "Overloaded",
    "PermissionDenied",
    "PetKind",
    "PetSpec",
    "Pfeiffer",
    "Pooling",
    "Prediction",
    "Processor",
    "ProcessorCounters",
    "ProcessorState",
    "ProcessorStats",
    "ProcessorTerms",
    "Projection",
    "QuotaExceeded",
    "RentOptions",
    "RowProblem",
    "Schedule",
    "SmileError",
    "Task",
    "Tenant",
    "TextEmpty",
    "TextTooLong",
    "Timings",
    "TokenClassification",
    "TokenLabel",
    "TooManyTexts",
    "TrainOptions",
    "TrainingEvent",
    "TrainingJob",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "VersionOrigin",
    "Vplm",
    "VplmOptions",
    "VplmUsage",
    "VplmVersion",
    "__version__",
]


if not TYPE_CHECKING:  # type checkers see the imports above, and no others

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'smile' has no attribute {name!r}")
        value: object = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
