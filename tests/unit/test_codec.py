"""Domain values survive the wire: encode, serialise, parse, decode gives the same value."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from smile import codec
from smile import processors as p
from smile import resources as r
from smile.codec.modules import ADAPTER_RANK_DEFAULT, DENSITIES_DEFAULT, LORA_RANK_DEFAULT
from smile.errors import InvalidName, InvalidSpec, NotFound
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
from smile.v1 import resources_pb2, trainer_pb2
from tests.unit.accounting_values import ACCOUNTING_PAIRS, COUNTS, DAYS, LIMITS, USES

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(0, 2**31 - 1)
BIG = st.integers(0, 2**63 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
SINGLE = st.floats(0, 1, width=32)
TIME = st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
SECONDS = st.integers(0, 10**12).map(lambda micros: micros / 1e6)
IDS = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
FIRST = st.none() | st.integers(0, 1000)
RANK = st.integers(1, 1024)
PETS = st.one_of(
    st.builds(PetSpec, st.sampled_from([PetKind.NONE, PetKind.BITFIT]), FIRST),
    st.builds(PetSpec, st.sampled_from([PetKind.PFEIFFER, PetKind.HOULSBY]), FIRST, RANK),
    st.builds(
        PetSpec,
        st.sampled_from([PetKind.DIFF_PRUNING, PetKind.MASK_BERT]),
        FIRST,
        density=st.floats(1e-9, 0.05),
    ),
    st.builds(
        PetSpec,
        st.just(PetKind.LORA),
        FIRST,
        RANK,
        st.floats(0.001, 65536),
        st.sets(st.sampled_from(Projection), min_size=1).map(
            lambda chosen: tuple(p for p in Projection if p in chosen)
        ),
    ),
)
LABELS = st.lists(TEXT.filter(bool), min_size=2, max_size=5, unique=True).map(tuple)
STATES_ALONE = st.sampled_from([Pooling.MEAN, Pooling.CLS])
HEADS = st.one_of(
    st.builds(HeadSpec, st.just(Task.SEQUENCE_CLASSIFICATION), LABELS, st.sampled_from(Pooling)),
    st.builds(HeadSpec, st.just(Task.TOKEN_CLASSIFICATION), LABELS, STATES_ALONE),
    st.builds(HeadSpec, st.just(Task.EMBEDDING), pooling=STATES_ALONE),
)
SPECS = st.builds(ModuleSpec, IDS, TEXT, PETS, HEADS, st.sampled_from(DType), st.just("") | IDS)
SHAPES = st.builds(BackboneShape, COUNT, COUNT, COUNT, COUNT, COUNT, BIG, BIG)
METRICS = st.dictionaries(TEXT, REAL, max_size=3)
PROBLEMS = st.lists(st.builds(r.RowProblem, BIG, TEXT, TEXT, TEXT), max_size=2).map(tuple)
REPORTS = st.builds(
    r.DatasetReport,
    BIG,
    BIG,
    PROBLEMS,
    BIG,
    st.dictionaries(TEXT, BIG, max_size=3),
    st.lists(TEXT, max_size=3).map(tuple),
)
COLUMNS = st.builds(r.ColumnMapping, TEXT.filter(bool), TEXT.filter(bool), TEXT)
HYPER = st.builds(
    r.HyperParameters,
    epochs=st.integers(1, 1000),
    learning_rate=st.floats(1e-9, 10),
    schedule=st.sampled_from(r.Schedule),
    batch_size=st.integers(1, 1024),
    optimizer=st.sampled_from(r.Optimizer),
    weight_decay=st.floats(0, 1),
    warmup_ratio=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
    early_stopping_epochs=COUNT,
    validation_ratio=st.floats(0, 0.9),
    tokens_max=COUNT,
    gradient_norm_max=st.floats(0, 1000),
    momentum=st.floats(0, 0.999),
    accumulation_batches=st.integers(1, 1024),
    class_weighting=st.sampled_from(r.ClassWeighting),
    class_weights=st.dictionaries(TEXT, st.floats(1e-9, 1000), max_size=2),
    early_stopping_delta=st.floats(0, 1000),
    selection=st.sampled_from(r.Selection),
    states=st.sampled_from(r.TrainingStates),
)
CLASS_SCORES = st.lists(st.builds(r.ClassScore, TEXT, REAL, REAL, REAL, BIG), max_size=3).map(tuple)
SUMMARIES = st.builds(
    r.TrainingSummary,
    CLASS_SCORES,
    st.lists(st.lists(BIG, max_size=3).map(tuple), max_size=3).map(tuple),
    CLASS_SCORES,
    BIG,
    TEXT,
    st.dictionaries(TEXT, TEXT, max_size=2),
    st.sampled_from(r.TrainingStates),
    TEXT,
)
JOBS = st.builds(
    r.TrainingJob,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    COLUMNS,
    HYPER,
    BIG,
    st.just("") | IDS,
    st.sampled_from(r.When),
    st.integers(-10, 10),
    st.sampled_from(r.JobState),
    TIME,
    TIME,
    TIME,
    TEXT,
    st.none() | st.builds(r.JobError, TEXT, TEXT, st.none() | REPORTS),
    st.builds(r.JobProgress, TEXT, BIG, BIG, COUNT, COUNT, REAL),
    METRICS,
    COUNT,
    BIG,
    st.none() | SUMMARIES,
    TIME,
)
METRIC = st.builds(r.Metric, TEXT, REAL, BIG, COUNT)
EVENTS = st.one_of(
    st.builds(r.TrainingEvent, TEXT, TIME, JOBS),
    st.builds(
        r.TrainingEvent, TEXT, TIME, metrics=st.lists(METRIC, min_size=1, max_size=3).map(tuple)
    ),
)
SCORES = st.lists(st.builds(r.LabelScore, TEXT, SINGLE), max_size=3).map(tuple)
TOKENS = st.lists(st.builds(r.TokenLabel, TEXT, COUNT, COUNT, TEXT, SINGLE), max_size=3).map(tuple)
RESULTS = st.one_of(
    st.builds(r.Classification, TEXT, SINGLE, SCORES),
    st.builds(r.TokenClassification, TOKENS),
    st.builds(r.Embedding, st.lists(SINGLE, min_size=1, max_size=4).map(tuple)),
)
PREDICTIONS = st.builds(r.Prediction, RESULTS, st.booleans(), COUNT)
TIMINGS = st.builds(r.Timings, SECONDS, SECONDS, SECONDS, SECONDS, COUNT, COUNT)
MATERIALIZATIONS = st.none() | st.builds(r.Materialization, TEXT, COUNT, COUNT, TEXT, TEXT)
ANSWERS = st.builds(
    r.InferResult,
    st.lists(PREDICTIONS, max_size=3).map(tuple),
    TEXT,
    TEXT,
    st.sampled_from(r.VersionOrigin),
    TIMINGS,
    MATERIALIZATIONS,
)
STRAIGHT = st.characters(exclude_categories=["Cs"])
FAILURES = st.builds(
    NotFound,
    st.text(STRAIGHT, max_size=20),
    reason=st.sampled_from(["NOT_FOUND", "ALIAS_NOT_FOUND"]),
    metadata=st.dictionaries(st.text(STRAIGHT, max_size=5), st.text(STRAIGHT, max_size=5)),
)
FANOUT_ANSWERS = st.builds(
    r.FanoutAnswer,
    PREDICTIONS,
    TEXT,
    TEXT,
    st.sampled_from(r.VersionOrigin),
    MATERIALIZATIONS,
)
FANOUTS = st.builds(r.FanoutResult, st.lists(FANOUT_ANSWERS, max_size=3).map(tuple), TIMINGS)
PLAIN_TERMS = st.builds(
    p.ProcessorTerms,
    st.floats(0.1, 10),
    COUNT,
    pinned=st.booleans(),
    idle_s=SECONDS,
    exactness=st.sampled_from(r.Exactness),
)
RATES = st.builds(
    p.ProcessorTerms, st.just(1.0), COUNT, st.floats(0.001, 1e6), BIG, st.booleans(), SECONDS
)
TERMS = PLAIN_TERMS | RATES
COUNTERS = st.builds(p.ProcessorCounters, *[BIG] * 6)
ALIASES = st.dictionaries(TEXT, BIG, max_size=2)
TAGS = st.dictionaries(TEXT, TEXT, max_size=2)
CANARIES = st.dictionaries(TEXT, st.builds(r.Canary, BIG, REAL), max_size=2)
VPLMS = st.builds(
    r.Vplm,
    *(TEXT, SPECS, TEXT, ALIASES, BIG, TIME, TIME, TEXT, TEXT, TAGS, CANARIES, TIME, TIME),
    st.none() | st.sampled_from(r.Exactness),
)
DERIVATIONS = st.builds(r.Derivation, TEXT, TEXT)
ADAPTERS = st.builds(
    r.PublicAdapter, *(TEXT, SPECS, TEXT, BIG, TIME, TEXT, TEXT, TEXT, TEXT, TAGS, METRICS)
)
MOVES = st.builds(
    r.AliasMoved,
    *(TEXT, BIG, BIG, st.none() | st.builds(r.Canary, BIG, REAL), TIME, TEXT, BIG),
)
CHANGES = st.lists(st.builds(r.FieldChange, TEXT, TEXT, TEXT), max_size=2).map(tuple)
TEXTS = st.lists(TEXT, max_size=2).map(tuple)
DIMENSIONS = st.lists(BIG, max_size=2).map(tuple)
DIFFS = st.builds(
    r.VersionDiff,
    *(TEXT, TEXT, st.booleans(), CHANGES, TEXTS, TEXTS, CHANGES),
    st.lists(st.builds(r.MetricPair, TEXT, st.none() | REAL, st.none() | REAL), max_size=2).map(
        tuple
    ),
    st.lists(
        st.builds(r.TensorDiff, TEXT, DIMENSIONS, DIMENSIONS, REAL, REAL, st.none() | REAL),
        max_size=2,
    ).map(tuple),
    REAL,
    st.none() | REAL,
)
VERSION_FIELDS = (
    *(TEXT, TEXT, BIG, SPECS, st.sampled_from(r.VersionOrigin)),
    *(TEXT, METRICS, TIME, TEXT),
)
VERSIONS = st.builds(
    r.VplmVersion,
    *VERSION_FIELDS,
    st.none() | st.builds(r.VplmVersion, *VERSION_FIELDS),
    REAL,
    st.none() | SUMMARIES,
    st.none() | DERIVATIONS,
    TIME,
    TIME,
    st.none() | st.sampled_from(r.Exactness),
)
DATASETS = st.builds(r.Dataset, TEXT, st.sampled_from(r.DatasetFormat), TEXT, BIG, TIME, TEXT)
USAGES = st.builds(
    r.Usage,
    TEXT,
    BIG,
    BIG,
    BIG,
    BIG,
    st.lists(st.builds(r.VplmUsage, TEXT, BIG, BIG, BIG, BIG, COUNTS, TEXT, BIG), max_size=3).map(
        tuple
    ),
    TEXT,
    st.lists(USES, max_size=3).map(tuple),
    st.lists(TEXT, max_size=3).map(tuple),
    st.lists(DAYS, max_size=3).map(tuple),
)
STATS = st.builds(
    r.ProcessorStats,
    st.lists(TEXT, max_size=2).map(tuple),
    *[BIG] * 12,
    *[REAL] * 3,
    *[BIG] * 8,
    *[REAL] * 7,
    *[BIG] * 6,
    st.dictionaries(TEXT, BIG, max_size=2),
    st.dictionaries(TEXT, BIG, max_size=2),
    st.lists(st.builds(r.ClassLatency, TEXT, BIG, REAL, REAL), max_size=2).map(tuple),
)

PAIRS: dict[str, tuple[st.SearchStrategy[Any], Callable[..., Message], Callable[..., Any]]] = {
    **ACCOUNTING_PAIRS,
    "backbone": (
        st.builds(r.Backbone, TEXT, TEXT, TEXT, SHAPES),
        codec.backbone_to_pb,
        codec.backbone_from_pb,
    ),
    "fanout": (FANOUTS, codec.fanout_to_pb, codec.fanout_from_pb),
    "terms": (TERMS, codec.terms_to_pb, codec.terms_from_pb),
    "processor": (
        st.builds(
            p.Processor, TEXT, TEXT, TERMS, st.sampled_from(p.ProcessorState), COUNTERS, TIME, TIME
        ),
        codec.processor_to_pb,
        codec.processor_from_pb,
    ),
    "canary": (st.builds(r.Canary, BIG, REAL), codec.canary_to_pb, codec.canary_from_pb),
    "pet": (PETS, codec.pet_to_pb, codec.pet_from_pb),
    "head": (HEADS, codec.head_to_pb, codec.head_from_pb),
    "spec": (SPECS, codec.spec_to_pb, codec.spec_from_pb),
    "adapter": (ADAPTERS, codec.adapter_to_pb, codec.adapter_from_pb),
    "alias_moved": (MOVES, codec.alias_moved_to_pb, codec.alias_moved_from_pb),
    "derivation": (DERIVATIONS, codec.derivation_to_pb, codec.derivation_from_pb),
    "diff": (DIFFS, codec.diff_to_pb, codec.diff_from_pb),
    "vplm": (VPLMS, codec.vplm_to_pb, codec.vplm_from_pb),
    "version": (VERSIONS, codec.version_to_pb, codec.version_from_pb),
    "dataset": (DATASETS, codec.dataset_to_pb, codec.dataset_from_pb),
    "tenant": (
        st.builds(r.Tenant, TEXT, TEXT, TIME, BIG, LIMITS),
        codec.tenant_to_pb,
        codec.tenant_from_pb,
    ),
    "api_key": (
        st.builds(r.ApiKey, TEXT, TEXT, TIME, TIME),
        codec.api_key_to_pb,
        codec.api_key_from_pb,
    ),
    "usage": (USAGES, codec.usage_to_pb, codec.usage_from_pb),
    "columns": (COLUMNS, codec.columns_to_pb, codec.columns_from_pb),
    "hyper_parameters": (HYPER, codec.hyper_parameters_to_pb, codec.hyper_parameters_from_pb),
    "report": (REPORTS, codec.report_to_pb, codec.report_from_pb),
    "job": (JOBS, codec.job_to_pb, codec.job_from_pb),
    "record": (
        st.builds(r.TrainingRecord, JOBS, BIG),
        codec.record_to_pb,
        codec.record_from_pb,
    ),
    "metric": (METRIC, codec.metric_to_pb, codec.metric_from_pb),
    "summary": (SUMMARIES, codec.summary_to_pb, codec.summary_from_pb),
    "event": (EVENTS, codec.event_to_pb, codec.event_from_pb),
    "prediction": (PREDICTIONS, codec.prediction_to_pb, codec.prediction_from_pb),
    "infer": (ANSWERS, codec.infer_to_pb, codec.infer_from_pb),
    "stats": (STATS, codec.stats_to_pb, codec.stats_from_pb),
}


@given(st.lists(FANOUT_ANSWERS | FAILURES, max_size=3), TIMINGS)
def test_errors_in_a_fan_out_survive_in_their_places(entries: list[Any], timings: Any) -> None:
    message = codec.fanout_to_pb(r.FanoutResult(tuple(entries), timings))
    found = codec.fanout_from_pb(type(message).FromString(message.SerializeToString()))
    for entry, back in zip(entries, found.entries, strict=True):
        if isinstance(entry, NotFound):
            assert isinstance(back, NotFound)
            assert (back.reason, back.message) == (entry.reason, entry.message)
            assert back.metadata == entry.metadata
        else:
            assert back == entry


def test_every_pair_of_the_codec_is_covered() -> None:
    names = {name.removesuffix("_to_pb") for name in codec.__all__ if name.endswith("_to_pb")}
    assert names - {"time", "duration", "exactness"} == set(PAIRS)  # those are no messages
    for name in PAIRS:
        assert PAIRS[name][1] is getattr(codec, f"{name}_to_pb")
        assert PAIRS[name][2] is getattr(codec, f"{name}_from_pb")


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_values_survive_the_wire(name: str, data: st.DataObject) -> None:
    strategy, encode, decode = PAIRS[name]
    value = data.draw(strategy)
    message = encode(value)
    parsed = type(message).FromString(message.SerializeToString())
    assert decode(parsed) == value


@pytest.mark.parametrize(
    ("table", "members"),
    [
        (codec.KINDS, PetKind),
        (codec.TASKS, Task),
        (codec.POOLINGS, Pooling),
        (codec.PROJECTIONS, Projection),
        (codec.PRECISIONS, DType),
        (codec.ORIGINS, r.VersionOrigin),
        (codec.FORMATS, r.DatasetFormat),
        (codec.OPTIMIZERS, r.Optimizer),
        (codec.SCHEDULES, r.Schedule),
        (codec.STATES, r.JobState),
        (codec.CLASS_WEIGHTINGS, r.ClassWeighting),
        (codec.SELECTIONS, r.Selection),
        (codec.WHENS, r.When),
        (codec.EXACTNESSES, r.Exactness),
    ],
)
def test_enum_tables_are_complete_both_ways(table: Any, members: Any) -> None:
    numbers = [table.to_pb(member) for member in members]
    assert sorted(numbers) == list(range(1, len(members) + 1))
    assert [table.from_pb(number) for number in numbers] == list(members)
    with pytest.raises(InvalidSpec, match="unset or unknown: 99"):
        table.from_pb(99)


def test_unset_fields_take_the_platforms_defaults() -> None:
    kinds = resources_pb2.PetKind
    pfeiffer = codec.pet_from_pb(resources_pb2.PetSpec(kind=kinds.PET_KIND_PFEIFFER))
    assert pfeiffer == PetSpec(PetKind.PFEIFFER, None, ADAPTER_RANK_DEFAULT)
    lora = codec.pet_from_pb(resources_pb2.PetSpec(kind=kinds.PET_KIND_LORA))
    targets = (Projection.QUERY, Projection.VALUE)
    assert lora == PetSpec(PetKind.LORA, None, LORA_RANK_DEFAULT, 16.0, targets)
    for kind, number in (
        (PetKind.DIFF_PRUNING, kinds.PET_KIND_DIFF_PRUNING),
        (PetKind.MASK_BERT, kinds.PET_KIND_MASK_BERT),
    ):
        sparse = codec.pet_from_pb(resources_pb2.PetSpec(kind=number))
        assert sparse == PetSpec(kind, density=DENSITIES_DEFAULT[kind])
    zero = codec.pet_from_pb(resources_pb2.PetSpec(kind=kinds.PET_KIND_BITFIT, first_layer=0))
    assert zero.first_layer == 0
    assert codec.hyper_parameters_from_pb(trainer_pb2.HyperParameters()) == r.HyperParameters()
    job = codec.job_from_pb(trainer_pb2.TrainingJob())
    assert (job.state, job.promote_alias, job.error) == (r.JobState.QUEUED, r.SERVING, None)
    assert job.columns == r.ColumnMapping()


def test_explicit_zeros_are_kept_where_zero_has_a_meaning() -> None:
    values = r.HyperParameters(
        weight_decay=0.0, warmup_ratio=0.0, validation_ratio=0.0, gradient_norm_max=0.0
    )
    assert codec.hyper_parameters_from_pb(codec.hyper_parameters_to_pb(values)) == values


def test_what_makes_no_sense_is_refused() -> None:
    kinds, message = resources_pb2.PetKind, resources_pb2.PetSpec
    for pet, text in (
        (message(), "unset or unknown: 0"),
        (message(kind=kinds.PET_KIND_BITFIT, rank=4), "kind 'bitfit' has no rank, got 4"),
        (message(kind=kinds.PET_KIND_PFEIFFER, rank=2000), "between 1 and 1024"),
        (message(kind=kinds.PET_KIND_PFEIFFER, alpha=2), "kind 'pfeiffer' has no alpha"),
        (message(kind=kinds.PET_KIND_BITFIT, density=0.01), "kind 'bitfit' has no density"),
        (
            message(kind=kinds.PET_KIND_MASK_BERT, density=0.051),
            "at most 0.05 for kind 'mask-bert'",
        ),
        (
            message(kind=kinds.PET_KIND_DIFF_PRUNING, density=float("nan")),
            "density must be above 0",
        ),
        (message(kind=kinds.PET_KIND_DIFF_PRUNING, rank=2), "kind 'diff-pruning' has no rank"),
    ):
        with pytest.raises(InvalidSpec, match=text):
            codec.pet_from_pb(pet)
    with pytest.raises(InvalidName, match="backbones/"):
        codec.spec_from_pb(resources_pb2.ModuleSpec(backbone="minilm"))


def test_order_and_repetition_of_targets_do_not_matter() -> None:
    targets = [
        resources_pb2.PROJECTION_VALUE,
        resources_pb2.PROJECTION_QUERY,
        resources_pb2.PROJECTION_VALUE,
    ]
    message = resources_pb2.PetSpec(kind=resources_pb2.PET_KIND_LORA, rank=2, targets=targets)
    assert codec.pet_from_pb(message).targets == (Projection.QUERY, Projection.VALUE)
