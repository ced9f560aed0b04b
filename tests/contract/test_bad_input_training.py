"""Jobs that cannot be, and datasets that cannot be trained on: told before, or by the job's end."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

import smile
from smile.resources import Vplm
from smile.v1 import trainer_pb2
from tests.contract.every_rpc import ROWS, create_job, upload
from tests.contract.harmless import Scene, scene, told

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CREATE = "TrainerService.CreateTrainingJob"
MADE = ("/acme/", "pendingJobs/", "/trainingJob")  # what jobs and uploads of acme may leave


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Scene]:
    async with scene() as made:
        await cancel_all(made)
        yield made


async def cancel_all(place: Scene) -> None:
    """So that a worker finds only what a test gives it."""
    for client in (place.client, place.neighbour):
        async for job in client.jobs():
            await client.cancel(job)


def values(**fields: Any) -> trainer_pb2.HyperParameters:
    return trainer_pb2.HyperParameters(**fields)


NUMBERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown optimizer": ({"optimizer": 99}, ("optimizer",)),
    "unknown schedule": ({"schedule": 99}, ("schedule",)),
    "negative epochs": ({"epochs": -1}, ("epochs", "1000")),
    "1,001 epochs": ({"epochs": 1001}, ("epochs", "1000")),
    "negative rate": ({"learning_rate": -0.1}, ("learning_rate", "10")),
    "rate of 11": ({"learning_rate": 11.0}, ("learning_rate", "10")),
    "rate nan": ({"learning_rate": math.nan}, ("learning_rate",)),
    "rate infinite": ({"learning_rate": math.inf}, ("learning_rate",)),
    "negative batch": ({"batch_size": -1}, ("batch_size", "1024")),
    "batch of 1,025": ({"batch_size": 1025}, ("batch_size", "1024")),
    "negative decay": ({"weight_decay": -0.1}, ("weight_decay", "1")),
    "decay nan": ({"weight_decay": math.nan}, ("weight_decay",)),
    "warm-up of 2": ({"warmup_ratio": 2.0}, ("warmup_ratio", "1")),
    "negative seed": ({"seed": -1}, ("seed",)),
    "seed of 2^32": ({"seed": 2**32}, ("seed", "4294967295")),
    "negative patience": ({"early_stopping_epochs": -1}, ("early_stopping_epochs",)),
    "all for validation": ({"validation_ratio": 1.0}, ("validation_ratio", "0.9")),
    "negative tokens": ({"tokens_max": -1}, ("tokens_max",)),
    "two tokens": ({"tokens_max": 2}, ("tokens_max", "3", "128", "2")),
    "tokens beyond the backbone": ({"tokens_max": 129}, ("tokens_max", "128", "129")),
    "momentum of 1": ({"momentum": 1.0}, ("momentum", "1")),
    "negative accumulation": ({"accumulation_batches": -1}, ("accumulation_batches", "1024")),
    "accumulation of 1,025": ({"accumulation_batches": 1025}, ("accumulation_batches", "1024")),
    "unknown weighting": ({"class_weighting": 99}, ("class_weighting",)),
    "weight of no label": ({"class_weights": {"nobody": 1.0}}, ("class_weights", "nobody")),
    "weight of zero": ({"class_weights": {"sport": 0.0}}, ("class_weights", "0")),
    "weight nan": ({"class_weights": {"sport": math.nan}}, ("class_weights",)),
    "negative delta": ({"early_stopping_delta": -1.0}, ("early_stopping_delta",)),
    "unknown selection": ({"selection": 99}, ("selection",)),
    "entities of topics": ({"selection": 5}, ("selection", "entity_f1")),
    "negative norm": ({"gradient_norm_max": -1.0}, ("gradient_norm_max",)),
}


@pytest.mark.parametrize("case", NUMBERS)
async def test_hyper_parameters_out_of_range(place: Scene, case: str) -> None:
    fields, facts = NUMBERS[case]
    request = create_job(place.acme, hyper_parameters=values(**fields))
    request.validate_only = False
    async with place.harmless():
        outcome = await place.call(CREATE, request)
        assert outcome.code is INVALID, outcome
        assert outcome.reason in ("REQUEST_INVALID", "INVALID_SPEC")
        assert outcome.error is not None
        told(outcome.error, *facts)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"optimizer": "adagrad"}, "adamw"),
        ({"schedule": "zigzag"}, "cosine"),
        ({"learning_rate": -1.0}, "-1"),
        ({"learning_rate": 0}, "0"),
        ({"learning_rate": math.nan}, "nan"),
        ({"epochs": 0}, "0"),
        ({"batch_size": 0}, "0"),
        ({"seed": 2**70}, "fit"),
    ],
)
async def test_hyper_parameters_that_the_sdk_refuses(
    place: Scene, options: dict[str, Any], fact: str
) -> None:
    async with place.harmless():
        with pytest.raises(smile.InvalidArgument, match=fact) as caught:
            await place.client.train("topic", "rows", **options)
        assert next(iter(options)) in caught.value.message or fact == "fit"


@pytest.mark.parametrize("fields", [{"priority": 11}, {"priority": -11}, {"when": 99}])
async def test_orders_that_cannot_be(place: Scene, fields: dict[str, Any]) -> None:
    request = create_job(place.acme)
    request.validate_only = False
    for name, value in fields.items():
        setattr(request.training_job, name, value)
    async with place.harmless():
        outcome = await place.call(CREATE, request)
        assert outcome.code is INVALID, outcome
        assert outcome.error is not None
        told(outcome.error, *fields)


async def test_early_stopping_without_validation(place: Scene) -> None:
    with pytest.raises(smile.InvalidSpec, match="validation"):
        await place.client.train("topic", "rows", early_stopping_epochs=2, validation_ratio=0.0)


async def test_columns_that_do_not_fit_the_task(place: Scene) -> None:
    async with place.harmless():
        tried: list[Any] = [{"pair_column": "other"}, {"text_column": "a", "label_column": "a"}]
        for columns in tried:
            with pytest.raises(smile.InvalidArgument) as caught:
                await place.client.train("topic", "rows", **columns)
            assert caught.value.reason == "COLUMNS_INVALID"


async def test_jobs_on_what_is_not_there(place: Scene) -> None:
    async with place.harmless():
        for vplm, dataset, options in (
            ("absent", "rows", {}),
            ("topic", "absent", {}),
            ("topic", "rows", {"validation_dataset": "absent"}),
            ("tenants/rival/vplms/topic", "rows", {}),
            ("topic", "tenants/rival/datasets/rows", {}),
            ("topic", "rows", {"validation_dataset": "tenants/rival/datasets/rows"}),
            ("topic", "rows", {"base_version": 99}),
        ):
            with pytest.raises(smile.NotFound):
                await place.client.train(vplm, dataset, **options)
        with pytest.raises(smile.NotFound):
            await place.client.job("absent")
        with pytest.raises(smile.NotFound):
            await place.client.cancel(place.rival.jobs[0])
        for token in ("x", "1-1", "-", "99999999999999999999999-0.1", "\u0663-0.1", "0-0.1\n"):
            with pytest.raises(smile.InvalidArgument) as caught:
                await anext(place.client.watch(place.acme.jobs[2], resume_token=token))
            assert caught.value.reason == "RESUME_TOKEN_INVALID", token


async def test_as_many_jobs_as_may_wait(place: Scene) -> None:
    """The limit is 20 here."""
    async with place.harmless(changes=MADE):
        await cancel_all(place)
        for _ in range(20):
            await place.client.train("topic", "rows")
        for _ in range(2):
            with pytest.raises(smile.QuotaExceeded) as caught:
                await place.client.train("topic", "rows")
            assert caught.value.reason == "JOBS_QUEUED_MAX"
            told(caught.value, "20")
        assert (await place.neighbour.train("topic", "rows")).state is smile.JobState.QUEUED
        await cancel_all(place)
        assert (await place.client.train("topic", "rows")).state is smile.JobState.QUEUED
        await cancel_all(place)


CSV, JSONL, PARQUET = 1, 2, 3
DATASETS: dict[str, tuple[int, bytes, str, int, str]] = {
    # format, bytes, reason of the first problem, its row, part of its message
    "header only": (CSV, b"text,label\n", "DATASET_EMPTY", 0, "row"),
    "one newline": (CSV, b"\n", "DATASET_EMPTY", 0, "row"),
    "one class": (CSV, b"text,label\n" + b"happy,good\n" * 9, "ONE_CLASS", 0, "good"),
    "one row": (CSV, b"text,label\nhappy,good\n", "", 0, "1"),
    "no text column": (CSV, ROWS.replace(b"text,", b"body,", 1), "COLUMN_MISSING", 0, "text"),
    "no label column": (CSV, ROWS.replace(b",label", b",y", 1), "COLUMN_MISSING", 0, "label"),
    "column twice": (CSV, ROWS.replace(b"text,", b"label,", 1), "", 0, "label"),
    "too many cells": (CSV, ROWS + b"a,good,more\n", "ROW_MALFORMED", 13, "3"),
    "too few cells": (CSV, ROWS + b"alone\n", "ROW_MALFORMED", 13, "1"),
    "open quote": (CSV, ROWS + b'"never closed,good\n', "ROW_MALFORMED", 13, "line 14"),
    "text after quote": (CSV, ROWS + b'"a"b,good\n', "ROW_MALFORMED", 13, "line 14"),
    "unknown label": (CSV, ROWS + b"a,ugly\n", "LABEL_UNKNOWN", 13, "ugly"),
    "label in capitals": (CSV, ROWS + b"a,Good\n", "LABEL_UNKNOWN", 13, "Good"),
    "empty label": (CSV, ROWS + b"a,\n", "LABEL_UNKNOWN", 13, "label"),
    "empty text": (CSV, ROWS + b",good\n", "TEXT_EMPTY", 13, "text"),
    "blank text": (CSV, ROWS + b'"  ",good\n', "TEXT_EMPTY", 13, "text"),
    "long text": (CSV, ROWS + b"x" * 100_001 + b",good\n", "TEXT_TOO_LONG", 13, "100001"),
    "not utf-8": (CSV, ROWS + b"\xff\xfe,good\n", "ENCODING_INVALID", 13, "0xff"),
    "utf-16": (CSV, ROWS.decode().encode("utf-16"), "ENCODING_INVALID", 0, "0xff"),
    "parquet as csv": (CSV, b"PAR1" + bytes(range(256)), "", 0, ""),
    "csv as json": (JSONL, ROWS, "ROW_MALFORMED", 1, "line 1"),
    "csv as parquet": (PARQUET, ROWS, "ROW_MALFORMED", 0, "Parquet"),
    "json list": (JSONL, b"[1, 2]\n", "ROW_MALFORMED", 1, "list"),
    "deep json": (JSONL, b"[" * 100_000 + b"\n", "ROW_MALFORMED", 1, "line 1"),
    "number as text": (JSONL, b'{"text": 1, "label": "good"}\n', "TEXT_TYPE", 1, "1"),
    "null as text": (JSONL, b'{"text": null, "label": "good"}\n', "TEXT_EMPTY", 1, "null"),
    "list as label": (JSONL, b'{"text": "a", "label": ["good"]}\n', "LABEL_TYPE", 1, "label"),
    "null as label": (JSONL, b'{"text": "a", "label": null}\n', "LABEL_TYPE", 1, "label"),
    "object as label": (JSONL, b'{"text": "a", "label": {}}\n', "LABEL_TYPE", 1, "label"),
    "number as label": (JSONL, b'{"text": "a", "label": 1.5}\n', "LABEL_TYPE", 1, "1.5"),
    "huge number": (JSONL, b'{"text": "a", "label": 1e999}\n', "LABEL_TYPE", 1, ""),
    "long integer": (JSONL, b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n", "", 1, ""),
    "surrogate": (JSONL, b'{"text": "\\ud800", "label": "good"}\n', "", 1, ""),
    "no label key": (JSONL, b'{"text": "a"}\n', "COLUMN_MISSING", 0, "label"),
}


@pytest.mark.parametrize("case", DATASETS)
async def test_a_report_names_what_is_wrong_by_row(place: Scene, case: str) -> None:
    format, data, reason, row, part = DATASETS[case]
    name = f"c-{case.replace(' ', '-')}"
    outcome = await place.call(
        "DatasetService.UploadDataset", upload(place.acme.parent, data, name=name, format=format)
    )
    assert outcome.code is grpc.StatusCode.OK, "storage does not look inside"
    async with place.harmless():
        report = await place.client.validate_dataset(name, "topic")
    assert report.problem_count >= 1
    problem = report.problems[0]
    assert reason in ("", problem.reason), problem
    assert problem.row == row and part in problem.message, problem
    assert all(len(found.message) < 500 for found in report.problems)


async def test_a_job_on_bad_rows_fails_with_its_report_and_serves_what_it_served(
    place: Scene,
) -> None:
    client = place.client
    vplm = await client.vplm("topic")
    await client.upload_dataset("broken", [{"text": "", "label": "ugly"}] * 150)
    async with place.harmless(changes=MADE), place.platform.worker():
        jobs: list[tuple[str, dict[str, Any], str]] = [
            ("broken", {}, "DATASET_INVALID"),
            ("c-header-only", {}, "DATASET_INVALID"),
            ("rows", {"text_column": "body"}, "DATASET_INVALID"),
        ]
        for dataset, options, reason in jobs:
            job = await client.train("topic", dataset, **options)
            with pytest.raises(smile.JobFailed) as caught:
                await client.wait(job)
            assert caught.value.reason == reason
            report = caught.value.report
            assert report is not None and report.problem_count and len(report.problems) <= 100
    _same(await client.vplm("topic"), vplm)


def _same(now: Vplm, before: Vplm) -> None:
    assert (now.aliases, now.latest_version, now.etag) == (
        before.aliases,
        before.latest_version,
        before.etag,
    )


async def test_a_rate_that_makes_weights_overflow_ends_with_a_reason(place: Scene) -> None:
    client = place.client
    await client.create_vplm(
        "wild", backbone="toy", pet=smile.Pfeiffer(rank=4), labels=["good", "bad"]
    )
    before = await client.vplm("wild")
    async with place.harmless(changes=MADE), place.platform.worker():
        job = await client.train(
            "wild", "rows", learning_rate=10.0, weight_decay=1.0, warmup_ratio=0.0, epochs=50
        )
        with pytest.raises(smile.JobFailed) as caught:
            await client.wait(job)
    assert caught.value.reason == "LOSS_NOT_FINITE"
    told(caught.value, "learning_rate", job.name)
    _same(await client.vplm("wild"), before)
    assert (await client.infer("wild", "a")).predictions


async def test_what_a_job_needs_is_deleted_or_rots_before_its_turn(place: Scene) -> None:
    client, store = place.client, place.platform.store
    for name in ("gone", "rotten"):
        await client.upload_dataset(name, [{"text": "a", "label": "good"}] * 8)
    jobs = [await client.train("topic", name) for name in ("gone", "rotten")]
    await client.create_vplm("leaving", backbone="toy", pet=smile.BitFit(), labels=["good", "bad"])
    jobs.append(await client.train("leaving", "rows"))
    await client.delete_dataset("gone")
    await client.delete_vplm("leaving")
    (data,) = (
        key
        for key in await store.snapshot()
        if "/datasets/rotten/" in key
        and "data" in key.rsplit("/", 1)[1]
        and not key.endswith(".json")
    )
    await store.overwrite(data, b"rot")
    reasons = []
    async with place.harmless(changes=MADE), place.platform.worker():
        for job in jobs:
            with pytest.raises(smile.JobFailed) as caught:
                await client.wait(job)
            reasons.append(caught.value.reason)
    assert reasons == ["DATASET_DELETED", "DIGEST_MISMATCH", "VPLM_DELETED"]
