"""The keywords of methods that take many, and what they turn into."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypedDict, TypeVar, cast

from smile.errors import InvalidSpec
from smile.model.specs import DType, HeadSpec, Pooling, Task
from smile.resources import (
    SERVING,
    ClassWeighting,
    ColumnMapping,
    Exactness,
    HyperParameters,
    Method,
    Optimizer,
    Schedule,
    Selection,
    TrainingJob,
    TrainingStates,
    When,
    defaults_of,
)

E = TypeVar("E", bound=enum.StrEnum)
# Zero would mean the default on the wire.
_NONZERO = ("epochs", "learning_rate", "batch_size", "accumulation_batches")
_CHOICES: Mapping[str, type[enum.StrEnum]] = {
    "optimizer": Optimizer,
    "schedule": Schedule,
    "class_weighting": ClassWeighting,
    "selection": Selection,
    "states": TrainingStates,
}


class VplmOptions(TypedDict, total=False):
    """Keywords of `create_vplm` besides backbone, PET module and labels.

    Attributes:
        task: Default: sequence classification with labels, embedding without.
        pooling: How token states become a text's: mean (default), cls, or pooler (BERT's own: cls
            through a dense layer and tanh; for classification).
        precision: Stored precision: float16 (default) or float32.
        domain: Whose rows stand for the lower layers in materialised answers; default: general.
        exactness: How it is answered where neither request nor rented terms say: `exact` (default),
            or `materialized` as far as the processor can.
        display_name: Text for people, at most 200 characters.
        tags: Free key-value pairs, at most 32.
        seed: Of the random part of the initial weights.
        validate_only: Check everything, create nothing.
        request_id: A UUID4 of one's own, to repeat the request across processes.
        timeout: Seconds.
    """

    task: Task | str
    pooling: Pooling | str
    precision: DType | str
    domain: str
    exactness: Exactness | str
    display_name: str
    tags: Mapping[str, str]
    seed: int
    validate_only: bool
    request_id: str
    timeout: float


class DeriveOptions(TypedDict, total=False):
    """Keywords of `derive_vplm` besides the adapter and labels.

    Attributes:
        base: Another vPLM of yours to take the module from, or by its full name a version of one;
            then there is no adapter.
        task, pooling: Of a fresh head, as for `create_vplm`.
        domain: As for `create_vplm`; default: that of what it begins as.
        exactness: How it is answered where neither request nor rented terms say: `exact` (default),
            or `materialized` as far as the processor can.
        display_name: Text for people, at most 200 characters.
        tags: Free key-value pairs, at most 32.
        seed: Of a fresh head's weights.
        validate_only: Check everything, create nothing.
        request_id: A UUID4 of one's own, to repeat the request across processes.
        timeout: Seconds.
    """

    base: str
    task: Task | str
    pooling: Pooling | str
    domain: str
    exactness: Exactness | str
    display_name: str
    tags: Mapping[str, str]
    seed: int
    validate_only: bool
    request_id: str
    timeout: float


class AdapterOptions(TypedDict, total=False):
    """Keywords of `publish_adapter` and `publish_version`.

    Attributes:
        display_name: Text for people, at most 200 characters.
        description: What it was trained for and on, at most 4,000 characters.
        license: Terms of use, an SPDX expression where there is one.
        source: Where it came from, e.g. a URL.
        tags: Free key-value pairs, at most 32.
        backbone_path, labels, pooling, precision: As for `import_vplm`.
        request_id: A UUID4 of one's own, to repeat the request across processes.
        timeout: Seconds, for the upload.
    """

    display_name: str
    description: str
    license: str
    source: str
    tags: Mapping[str, str]
    backbone_path: str | os.PathLike[str]
    labels: Sequence[str]
    pooling: Pooling | str
    precision: DType | str
    request_id: str
    timeout: float


class TrainOptions(TypedDict, total=False):
    """Keywords of `train`: columns, weights to start from, and the hyper-parameters.

    Attributes:
        method: `pet` (default), or `full`: every weight of the backbone trains. That takes about a
            hundred times the storage and more of the day's training seconds; what comes of it is
            exported (`export_vplm`) and never served.
        text_column, label_column, pair_column: Which columns hold what (`ColumnMapping`).
        validation_dataset: Validate on this dataset instead of a share of the rows.
        base_version: Start from this version of the vPLM; default: version 1 of a vPLM made of a
            public adapter, fresh initial weights of others.
        promote_alias: Alias to move to the new version; default `serving`, None moves none. None
            with method full.
        when: `now` (default), or `off_peak`: in the operator's windows.
        priority: Jobs of higher priority go before your others, -10 to 10; default 0.
        validate_only: Check what can be checked without reading rows, queue nothing.
        request_id: A UUID4 of one's own, to repeat the request across processes.
        timeout: Seconds for the job to be accepted.

    The others are fields of `HyperParameters`.
    """

    method: Method | str
    text_column: str
    label_column: str
    pair_column: str
    validation_dataset: str
    base_version: int
    promote_alias: str | None
    when: When | str
    priority: int
    validate_only: bool
    request_id: str
    timeout: float
    epochs: int
    learning_rate: float
    schedule: Schedule | str
    batch_size: int
    optimizer: Optimizer | str
    weight_decay: float
    warmup_ratio: float
    seed: int
    early_stopping_epochs: int
    validation_ratio: float
    tokens_max: int
    gradient_norm_max: float
    momentum: float
    accumulation_batches: int
    class_weighting: ClassWeighting | str
    class_weights: Mapping[str, float]
    early_stopping_delta: float
    selection: Selection | str
    states: TrainingStates | str


class InferOptions(TypedDict, total=False):
    """Keywords of `infer` and `infer_many`.

    Attributes:
        version: Ask this version of the vPLM instead of following an alias.
        alias: The alias to follow; default `serving`.
        truncate: Cut texts beyond the backbone's token limit instead of refusing them.
        top_k: Scores of this many best labels; default: all.
        routing_key: Where the alias splits its traffic between two versions, requests with equal
            keys are answered by the same one; default: every request is drawn anew.
        exactness: `exact`, or `materialized`: the lower layers are looked up; default: as the
            vPLM's rented terms say, else as the vPLM says, else exact.
        timeout: Seconds, for one request.
        patient: Where the processor refuses for now, wait as long as it asks, within `timeout`, and
            ask again; default True. False raises `Overloaded` at once.
    """

    version: int
    alias: str
    truncate: bool
    top_k: int
    routing_key: str
    exactness: Exactness | str
    timeout: float
    patient: bool


class FanoutOptions(TypedDict, total=False):
    """Keywords of `infer_fanout`.

    Attributes:
        alias: The alias to follow for vPLMs named without one; default `serving`.
        truncate, top_k, routing_key, exactness, timeout, patient: As for `infer`.
    """

    alias: str
    truncate: bool
    top_k: int
    routing_key: str
    exactness: Exactness | str
    timeout: float
    patient: bool


class RentOptions(TypedDict, total=False):
    """Keywords of `rent`: the fields of `ProcessorTerms`, and

    Attributes:
        wait: Return once the module is in memory, or with why it cannot be.
        timeout: Seconds.
    """

    weight: float
    concurrency_max: int
    texts_per_s: float
    burst_texts: int
    pinned: bool
    idle_s: float
    exactness: Exactness | str
    wait: bool
    timeout: float


def known(options: Mapping[str, object], kind: type) -> None:
    """Raise `TypeError`, as Python does, for a keyword that `kind` (a `TypedDict`) has not:
    `Unpack` is for type checkers alone, and a misspelt option must not become the default."""
    if not options.keys() <= kind.__annotations__.keys():
        unknown = sorted(options.keys() - kind.__annotations__.keys())
        raise TypeError(
            f"unknown option '{unknown[0]}'; there are {', '.join(sorted(kind.__annotations__))}"
        )


def choice(values: type[E], value: E | str, what: str) -> E:
    """`value` as a member of `values`. Raises `InvalidSpec` naming all of them."""
    try:
        return values(value)
    except ValueError:
        raise InvalidSpec(
            f"{what} must be one of {', '.join(values)}, got {str(value)[:80]!r}"
        ) from None


def head(given: Sequence[str], options: VplmOptions | DeriveOptions) -> HeadSpec:
    """The head that labels and options describe. Raises `InvalidSpec`."""
    if isinstance(given, str):
        raise InvalidSpec(f"labels are a list of texts, got one text: {given[:80]!r}")
    labels = tuple(given)
    default = Task.SEQUENCE_CLASSIFICATION if labels else Task.EMBEDDING
    return HeadSpec(
        choice(Task, options.get("task", default), "task"),
        labels,
        choice(Pooling, options.get("pooling", Pooling.MEAN), "pooling"),
    )


def columns(options: TrainOptions) -> ColumnMapping:
    default = ColumnMapping()
    return ColumnMapping(
        options.get("text_column", default.text),
        options.get("label_column", default.label),
        options.get("pair_column", default.pair),
    )


def hyper_parameters(options: TrainOptions) -> HyperParameters:
    """The hyper-parameters among `options`, the platform's defaults for the others.

    Raises:
        InvalidSpec: an unknown optimizer or the like, or a zero that would mean the default.
    """
    given: dict[str, Any] = {
        field.name: options[field.name]  # type: ignore[literal-required]
        for field in fields(HyperParameters)
        if field.name in options
    }
    for name in _NONZERO:
        if name in given and not given[name] > 0:
            raise InvalidSpec(f"{name} must be above 0, got {given[name]}")
    for name, values in _CHOICES.items():
        if name in given:
            given[name] = choice(values, given[name], name)
    method = choice(Method, options.get("method", Method.PET), "method")
    return replace(defaults_of(method), **given)


def trial(options: TrainOptions, given: Mapping[str, object]) -> HyperParameters:
    """A trial's hyper-parameters: its own, and those of `options` for the others.

    Raises:
        InvalidSpec: a name is no hyper-parameter's, or as `hyper_parameters`.
    """
    names = [field.name for field in fields(HyperParameters)]
    if unknown := sorted(given.keys() - set(names)):
        raise InvalidSpec(
            f"a trial sets hyper-parameters, which '{unknown[0][:80]}' is not; there are "
            f"{', '.join(names)}"
        )
    try:
        return hyper_parameters(cast(TrainOptions, {**options, **given}))
    except TypeError as error:
        raise InvalidSpec(f"a trial's hyper-parameters cannot be read: {error}") from None


def job(vplm: str, dataset: str, validation_dataset: str, options: TrainOptions) -> TrainingJob:
    """The job that `train` asks for, from full names and its options. Raises `InvalidSpec`."""
    method = choice(Method, options.get("method", Method.PET), "method")
    alias = None if method is Method.FULL else SERVING
    return TrainingJob(
        name="",
        vplm=vplm,
        dataset=dataset,
        validation_dataset=validation_dataset,
        columns=columns(options),
        hyper_parameters=hyper_parameters(options),
        base_version=options.get("base_version", 0),
        promote_alias=options.get("promote_alias", alias) or "",
        when=choice(When, options.get("when", When.NOW), "when"),
        priority=options.get("priority", 0),
        method=method,
    )
