"""What a job must say to be accepted: pure checks that name field, limit and value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from services.trainer.training.selection import selectable
from smile.errors import InvalidArgument, InvalidSpec
from smile.model.specs import BackboneShape, HeadSpec, PetKind, Task
from smile.resources import (
    ClassWeighting,
    ColumnMapping,
    HyperParameters,
    Method,
    Selection,
    Sweep,
    TrainingJob,
    TrainingStates,
    VplmVersion,
)

Violation = tuple[str, str]

# Field: least, greatest; `learning_rate` is above its least.
LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, 1000),
    "learning_rate": (0, 10),
    "batch_size": (1, 1024),
    "weight_decay": (0, 1),
    "warmup_ratio": (0, 1),
    "seed": (0, 2**32 - 1),
    "early_stopping_epochs": (0, 1000),
    "validation_ratio": (0, 0.9),
    "gradient_norm_max": (0, 1000),
    "momentum": (0, 0.999999),
    "accumulation_batches": (1, 1024),
    "early_stopping_delta": (0, 1000),
}
CLASS_WEIGHT_MAX = 1000.0
PRIORITY_MAX = 10
TRIALS_MAX = 256
TRIALS_AT_ONCE_MAX = 64
TRIAL_VIOLATIONS_MAX = 5
VIOLATIONS_MAX = 20
SHOWN_CHARS_MAX = 80
TOKENS_MIN = 3  # two special tokens and one of the text


def check_job(job: TrainingJob, head: HeadSpec, shape: BackboneShape) -> None:
    """Checks what can be checked without reading rows.

    Raises:
        InvalidSpec: a hyper-parameter is out of range; `violations` has them all.
        InvalidArgument: the columns do not fit the task (COLUMNS_INVALID).
    """
    violations = list(_range_violations(job.hyper_parameters))
    if abs(job.priority) > PRIORITY_MAX:
        bounds = f"between {-PRIORITY_MAX} and {PRIORITY_MAX}"
        violations.append(("priority", f"priority must be {bounds}, got {job.priority}"))
    violations += _tokens_violations(job.hyper_parameters, shape)
    if job.hyper_parameters.early_stopping_epochs and not _validates(job):
        violations.append(
            (
                "hyper_parameters.early_stopping_epochs",
                "early stopping needs validation rows: set validation_ratio or validation_dataset",
            )
        )
    violations += _method_violations(job)
    violations += _weight_violations(job.hyper_parameters, head)
    violations += _selection_violations(job, head)
    if violations:
        raise InvalidSpec(_told(violations), violations=violations)
    check_columns(job.columns, head)


def check_sweep(job: TrainingJob, sweep: Sweep, head: HeadSpec, shape: BackboneShape) -> str:
    """The metric by which a sweep's trials are compared.

    Raises:
        InvalidSpec: a trial would not be accepted as a job of its own, there are too many, or they
            cannot be compared.
        InvalidArgument: as `check_job`.
    """
    bounds = (("trials", len(sweep.trials), TRIALS_MAX),
              ("concurrency_max", sweep.concurrency_max, TRIALS_AT_ONCE_MAX))  # fmt: skip
    for name, value, greatest in bounds:
        if not 1 <= value <= greatest:
            message = f"sweep.{name} must be between 1 and {greatest}, got {value}"
            raise InvalidSpec(message, violations=[(f"sweep.{name}", message)])
    violations: list[Violation] = []
    for number, values in enumerate(sweep.trials, 1):
        try:
            check_job(replace(job, sweep=None, hyper_parameters=values), head, shape)
        except InvalidSpec as error:
            found = (error.violations or [("", error.message)])[:TRIAL_VIOLATIONS_MAX]
            violations += [(f"sweep.trials[{number}]", f"trial {number}: {m}") for _, m in found]
    metrics = {selectable(head).get(values.selection, "") for values in sweep.trials}
    if len(metrics) > 1:
        violations.append(("sweep.trials", "trials must all select by the same metric"))
    compared = (replace(job, hyper_parameters=values) for values in sweep.trials)
    if not all(map(_validates, compared)):
        message = "trials are compared on validation rows: set validation_ratio or "
        violations.append(("sweep.trials", message + "validation_dataset"))
    if violations:
        raise InvalidSpec(
            _told(violations[:VIOLATIONS_MAX]), violations=violations[:VIOLATIONS_MAX]
        )
    return metrics.pop()


def check_base(method: Method, base: VplmVersion) -> None:
    """Raises InvalidArgument (BASE_VERSION_MISMATCH) if a job of a method cannot start from it."""
    kind = base.spec.pet.kind
    if (kind is PetKind.FULL) is not (method is Method.FULL):
        raise InvalidArgument(
            f"a job of method {method} cannot start from {base.name}, which is of kind '{kind}'",
            reason="BASE_VERSION_MISMATCH",
            violations=[("base_version", f"must be of a version that method {method} made")],
        )


def check_columns(columns: ColumnMapping, head: HeadSpec) -> None:
    """Raises InvalidArgument (COLUMNS_INVALID) if the columns do not fit the head's task."""
    violations = list(_column_violations(columns, head))
    if violations:
        raise InvalidArgument(_told(violations), reason="COLUMNS_INVALID", violations=violations)


def _range_violations(values: HyperParameters) -> Iterator[Violation]:
    for name, (least, greatest) in LIMITS.items():
        value = float(getattr(values, name))
        above = value > least if name == "learning_rate" else value >= least
        if math.isfinite(value) and above and value <= greatest:
            continue
        bounds = "above 0 and at most" if name == "learning_rate" else f"between {least:g} and"
        yield f"hyper_parameters.{name}", f"{name} must be {bounds} {greatest:g}, got {value:g}"


def _tokens_violations(values: HyperParameters, shape: BackboneShape) -> list[Violation]:
    tokens = values.tokens_max
    if tokens == 0 or TOKENS_MIN <= tokens <= shape.tokens_max:
        return []
    message = (
        f"tokens_max must be between {TOKENS_MIN} and the backbone's {shape.tokens_max}, "
        f"or 0 for the latter, got {tokens}"
    )
    return [("hyper_parameters.tokens_max", message)]


def _method_violations(job: TrainingJob) -> Iterator[Violation]:
    if job.method is not Method.FULL:
        return
    if job.promote_alias:
        message = (
            f"a whole model is not served, so promote_alias must be '-', got '{job.promote_alias}'"
        )
        yield "promote_alias", message
    states = job.hyper_parameters.states
    if states is not TrainingStates.EXACT:
        message = f"a whole model trains all its layers, so states must be exact, got {states}"
        yield "hyper_parameters.states", message


def _weight_violations(values: HyperParameters, head: HeadSpec) -> Iterator[Violation]:
    weighed = values.class_weights or values.class_weighting is not ClassWeighting.UNIFORM
    if weighed and head.task is Task.EMBEDDING:
        name = "class_weights" if values.class_weights else "class_weighting"
        yield f"hyper_parameters.{name}", "embeddings have no classes to weigh"
        return
    for label, weight in values.class_weights.items():
        if label not in head.labels:
            message = f"class_weights names '{label[:SHOWN_CHARS_MAX]}', which is no label"
            yield "hyper_parameters.class_weights", message
        elif not 0 < weight <= CLASS_WEIGHT_MAX:
            message = (
                f"a class weight must be above 0 and at most {CLASS_WEIGHT_MAX:g}, got {weight:g} "
                f"for '{label}'"
            )
            yield "hyper_parameters.class_weights", message


def _selection_violations(job: TrainingJob, head: HeadSpec) -> Iterator[Violation]:
    selection, choices = job.hyper_parameters.selection, selectable(head)
    if selection not in choices:
        message = (
            f"selection of this vPLM must be one of {', '.join(choices)}, got {selection}; entity "
            "F1 needs token labels O, B-type and I-type"
        )
        yield "hyper_parameters.selection", message
    elif selection is not Selection.TASK and not _validates(job):
        message = (
            f"selection by {selection} needs validation rows: set validation_ratio or "
            "validation_dataset"
        )
        yield "hyper_parameters.selection", message


def _validates(job: TrainingJob) -> bool:
    return job.validation_dataset != "" or job.hyper_parameters.validation_ratio > 0


def _column_violations(columns: ColumnMapping, head: HeadSpec) -> Iterator[Violation]:
    if columns.pair and head.task is not Task.EMBEDDING:
        yield "columns.pair", f"pairs train embeddings, this vPLM's task is '{head.task}'"
    second = columns.pair or columns.label
    if columns.text == second:
        name = "pair" if columns.pair else "label"
        yield f"columns.{name}", f"columns text and {name} are both '{second}'"


def _told(violations: list[Violation]) -> str:
    return "; ".join(message for _, message in violations)
