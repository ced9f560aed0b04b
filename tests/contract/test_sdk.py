"""The SDK over real servers: datasets, versions, training, inference, account."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import pytest_asyncio

import smile
from smile.client.account import NewApiKey
from tests.contract.sdk_world import STEPS, World, new_uuid, overloaded, world

pytestmark = pytest.mark.asyncio
ROWS = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)]


@pytest_asyncio.fixture
async def platform() -> AsyncIterator[World]:
    async with world("acme", "rival") as made:
        yield made


@pytest_asyncio.fixture
async def client(platform: World) -> AsyncIterator[smile.AsyncClient]:
    async with platform.client("acme") as made:
        yield made


async def created(client: smile.AsyncClient, vplm: str = "topic") -> smile.Vplm:
    return await client.create_vplm(
        vplm, backbone="toy", pet=smile.Pfeiffer(rank=4), labels=["a", "b"]
    )


def labels_of(predictions: Iterable[smile.Prediction]) -> list[str]:
    results = [prediction.result for prediction in predictions]
    return [result.label for result in results if isinstance(result, smile.Classification)]


# datasets


async def test_rows_and_files_become_datasets(client: smile.AsyncClient, tmp_path: Path) -> None:
    from_rows = await client.upload_dataset("rows", iter(ROWS))
    assert from_rows.format is smile.DatasetFormat.JSONL
    file = tmp_path / "News.CSV"
    file.write_text("text,label\nshares rose,business\n", encoding="utf-8")
    from_file = await client.upload_dataset("news", file, display_name="News")
    assert (from_file.format, from_file.display_name) == (smile.DatasetFormat.CSV, "News")
    assert from_file.size_bytes == file.stat().st_size
    assert await client.dataset("news") == from_file
    assert [d.name async for d in client.datasets(page_size=1)] == [from_file.name, from_rows.name]
    await client.delete_dataset("news")
    with pytest.raises(smile.NotFound):
        await client.dataset("news")


async def test_large_files_are_streamed_with_progress(
    client: smile.AsyncClient, tmp_path: Path
) -> None:
    file = tmp_path / "big.jsonl"
    file.write_bytes(b'{"text": "x", "label": "a"}\n' * 200_000)  # 5.6 MB: more than any message
    heard: list[tuple[int, int]] = []
    made = await client.upload_dataset(
        "big", str(file), on_progress=lambda sent, total: heard.append((sent, total))
    )
    assert made.size_bytes == file.stat().st_size
    assert heard[-1] == (made.size_bytes, made.size_bytes) and len(heard) == 6
    assert heard == sorted(heard)


async def test_bad_sources_are_refused(client: smile.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "data.xlsx").write_text("x")
    for source, message in (
        (tmp_path / "gone.csv", "cannot read .*: No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "empty.csv", "is empty: 0 bytes"),
        (tmp_path / "data.xlsx", r"known are \.csv, \.jsonl, \.ndjson, \.parquet"),
        ([{"text": object()}], "row 1 cannot be written as JSON"),
        ([{"text": "a"}, {"text": float("nan")}], "row 2 cannot be written as JSON"),
        ([], "is empty: 0 bytes"),
    ):
        with pytest.raises(smile.InvalidArgument, match=message):
            await client.upload_dataset("news", source)  # type: ignore[arg-type]
    with pytest.raises(smile.InvalidSpec, match="format must be one of csv, jsonl, parquet"):
        await client.upload_dataset("news", tmp_path / "data.xlsx", format="excel")
    assert [d async for d in client.datasets()] == []


async def test_an_upload_over_quota_is_refused_and_leaves_nothing(platform: World) -> None:
    await platform.add_tenant("small", quota_bytes=1000)
    async with platform.client("small") as client:
        with pytest.raises(smile.QuotaExceeded, match=r"1000|1,000"):
            await client.upload_dataset("rows", [{"text": "x" * 2000, "label": "a"}])
        assert [d async for d in client.datasets()] == []
        assert (await client.usage()).dataset_bytes == 0


async def test_an_upload_repeated_with_its_request_id_happens_once(
    client: smile.AsyncClient,
) -> None:
    request_id = new_uuid()
    first = await client.upload_dataset("rows", ROWS, request_id=request_id)
    assert await client.upload_dataset("rows", ROWS, request_id=request_id) == first
    with pytest.raises(smile.AlreadyExists):
        await client.upload_dataset("rows", ROWS)


# versions


async def test_versions_go_down_and_up_and_aliases_move(
    client: smile.AsyncClient, tmp_path: Path
) -> None:
    await created(client)
    path = tmp_path / "weights.safetensors"
    first = await client.download_version("topic", path)
    assert first.number == 1
    second = await client.upload_version("topic", path, note="the same again")
    assert (second.number, second.digest, second.origin) == (
        2,
        first.digest,
        smile.VersionOrigin.IMPORT,
    )
    assert [v.number async for v in client.versions("topic", page_size=1)] == [2, 1]
    assert (await client.version("topic")).number == 1
    assert (await client.set_alias("topic", "serving", 2)).aliases == {"serving": 2}
    assert (await client.version("topic")).number == 2
    assert (await client.version("tenants/-/vplms/topic", 1)).number == 1
    split = await client.set_alias("topic", "serving", 1, canary=2, weight=0.25)
    assert split.canaries == {"serving": smile.Canary(2, 0.25)}
    assert (await client.vplm("topic")).canaries == split.canaries
    serving = await client.version("topic")
    assert serving.canary is not None
    assert (serving.number, serving.canary.number, serving.canary_weight) == (1, 2, 0.25)
    with pytest.raises(smile.Aborted):
        await client.set_alias("topic", "serving", 2, etag="stale")
    for wrong in ({"canary": 2}, {"weight": 0.5}, {"canary": 1, "weight": 0.5}):
        with pytest.raises(smile.InvalidArgument):
            await client.set_alias("topic", "serving", 1, **wrong)
    for weight in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(smile.InvalidArgument, match=r"canary\.weight"):
            await client.set_alias("topic", "serving", 1, canary=2, weight=weight)
    assert (await client.set_alias("topic", "serving", 2)).canaries == {}, "promoted"
    for call in (
        client.set_alias("topic", "serving", 9),
        client.set_alias("topic", "serving", 1, canary=9, weight=0.5),
        client.version("topic", 9),
    ):
        with pytest.raises(smile.NotFound):
            await call
    for call in (client.version("topic", 0), client.version("topic", -1)):
        with pytest.raises(smile.InvalidName):
            await call


async def test_foreign_or_damaged_weights_are_refused(
    client: smile.AsyncClient, tmp_path: Path
) -> None:
    await created(client)
    path = tmp_path / "weights.safetensors"
    await client.download_version("topic", path)
    data = path.read_bytes()
    for bad in (data[:-1], b"\x80\x04pickle", data[:8] + b" " + data[9:]):
        path.write_bytes(bad)
        with pytest.raises(smile.InvalidArgument) as raised:
            await client.upload_version("topic", path)
        assert raised.value.reason == "MODULE_INVALID"
    assert [v.number async for v in client.versions("topic")] == [1]
    with pytest.raises(smile.InvalidArgument, match="cannot write"):
        await client.download_version("topic", tmp_path / "no" / "folder")
    assert os.listdir(tmp_path) == ["weights.safetensors"]


# training


async def test_a_job_is_queued_watched_and_waited_for(
    client: smile.AsyncClient, platform: World
) -> None:
    await created(client)
    await client.upload_dataset("rows", ROWS)
    job = await client.train(
        "topic", "rows", epochs=3, optimizer="sgd", text_column="body", promote_alias=None
    )
    assert job.state is smile.JobState.QUEUED
    assert (job.hyper_parameters.epochs, job.hyper_parameters.optimizer) == (3, "sgd")
    assert (job.columns.text, job.columns.label, job.promote_alias) == ("body", "label", "")
    events = [event async for event in client.watch(job)]
    assert [event.resume_token for event in events] == [str(n + 1) for n in range(len(events))]
    assert [m.value for e in events for m in e.metrics] == [1 / n for n in range(1, STEPS + 1)]
    assert events[-1].job is not None and events[-1].job.state is smile.JobState.SUCCEEDED
    heard: list[smile.TrainingEvent] = []
    ended = await client.wait(job, on_event=heard.append, timeout=10)
    assert ended.metrics == {"validation_accuracy": 0.975} and ended.version.endswith("/2")
    assert heard[-1].job == ended
    assert [found.name async for found in client.jobs(page_size=1)] == [job.name]


async def test_a_watch_goes_on_where_its_connection_was_lost(
    client: smile.AsyncClient, platform: World
) -> None:
    job = await client.train("topic", "rows")
    whole = [event async for event in client.watch(job)]
    platform.trainer.resume_tokens.clear()
    platform.trainer.cut_after = [3, 0, 2]
    again = [event async for event in client.watch(job)]
    assert [event.resume_token for event in again] == [event.resume_token for event in whole]
    assert platform.trainer.resume_tokens == ["", "3", "3", "5"]
    later = [event async for event in client.watch(job, resume_token="4")]
    assert later == again[4:]


async def test_errors_of_a_watch_are_raised(client: smile.AsyncClient, platform: World) -> None:
    with pytest.raises(smile.NotFound):
        _ = [event async for event in client.watch("nothing")]
    job = await client.train("topic", "rows")
    platform.trainer.failures = [smile.PermissionDenied("no")]
    with pytest.raises(smile.PermissionDenied):
        _ = [event async for event in client.watch(job)]


async def test_failed_and_cancelled_jobs_raise_with_their_report(
    client: smile.AsyncClient, platform: World
) -> None:
    report = smile.DatasetReport(2, 1, (smile.RowProblem(2, "label", "LABEL_UNKNOWN", "x"),), 1)
    platform.trainer.fails_with = smile.JobError("DATASET_INVALID", "1 of 2 rows is bad", report)
    job = await client.train("topic", "rows")
    with pytest.raises(smile.JobFailed, match="failed: 1 of 2 rows is bad") as raised:
        await client.wait(job)
    assert raised.value.reason == "DATASET_INVALID"
    assert raised.value.report == report
    assert raised.value.job.name == job.name
    job = await client.train("topic", "rows")
    assert (await client.cancel(job)).state is smile.JobState.CANCELLED
    with pytest.raises(smile.JobFailed) as raised:
        await client.wait(job.name)
    assert (raised.value.reason, raised.value.report) == ("JOB_CANCELLED", None)


async def test_waiting_has_an_end_and_leaves_the_job_alone(
    client: smile.AsyncClient, platform: World
) -> None:
    platform.trainer.hold = True
    job = await client.train("topic", "rows")
    with pytest.raises(smile.DeadlineExceeded, match=r"has not ended after 0\.2 s"):
        await client.wait(job, timeout=0.2)
    assert not (await client.job(job)).state.done
    await client.cancel(job)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of adamw, adam, sgd, adafactor, got 'lion'"),
        ({"schedule": "step"}, "schedule must be one of linear, cosine, constant"),
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"learning_rate": -1e-3}, "learning_rate must be above 0, got -0.001"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"learning_rate": 11.0}, "learning_rate"),
        ({"batch_size": 2000}, "batch_size"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"seed": 1 << 70}, "does not fit"),
        ({"validation_ratio": 0.95}, "validation_ratio"),
        ({"promote_alias": "Nope!"}, "promote_alias"),
    ],
)
async def test_bad_hyper_parameters_are_refused(
    client: smile.AsyncClient, options: dict[str, object], message: str
) -> None:
    with pytest.raises(smile.InvalidArgument, match=message):
        await client.train("topic", "rows", **options)  # type: ignore[arg-type]
    assert [job async for job in client.jobs()] == []


async def test_a_dataset_is_validated_without_training(client: smile.AsyncClient) -> None:
    mapping = smile.ColumnMapping(label="topic")
    report = await client.validate_dataset("rows", "topic", columns=mapping)
    assert (report.rows, report.problems[0].column, report.label_counts["a"]) == (10, "topic", 5)


# retries


async def test_a_retried_mutation_keeps_its_request_id(
    client: smile.AsyncClient, platform: World
) -> None:
    platform.trainer.failures = [smile.Unavailable("away"), smile.Unavailable("away")]
    await client.train("topic", "rows")
    assert len(platform.trainer.request_ids) == 3
    assert len(set(platform.trainer.request_ids)) == 1
    await client.train("topic", "rows")
    assert len(set(platform.trainer.request_ids)) == 2


async def test_a_service_that_is_away_gives_unavailable() -> None:
    key = f"smile_acme_k{'a' * 15}_{'s' * 43}"
    endpoints = ",".join(f"{s}=localhost:1" for s in ("creator", "storage", "trainer", "processor"))
    async with smile.AsyncClient(key, endpoints=endpoints) as client:
        for call in (
            client.backbones(),
            client.upload_dataset("rows", ROWS),
            client.infer("t", "x"),
        ):
            with pytest.raises(smile.Unavailable):
                await call


# inference


async def test_texts_are_answered_in_order(client: smile.AsyncClient) -> None:
    result = await client.infer("topic", ["one", "three"], top_k=2, truncate=True)
    assert labels_of(result.predictions) == ["3", "5"]
    assert result.predictions[0].truncated and result.version.endswith("/topic/versions/1")
    assert result.timings.batch_texts == 2 and result.origin is smile.VersionOrigin.TRAINING
    single = await client.infer("topic", "one", version=7)
    assert single.version == "tenants/acme/vplms/topic/versions/7"
    named = await client.infer("tenants/acme/vplms/topic/versions/3", "one")
    assert named.version.endswith("/3")
    assert (await client.stats()).texts_total == 7


async def test_many_vplms_are_asked_at_once(client: smile.AsyncClient) -> None:
    asked = ["topic", "absent", "tenants/acme/vplms/topic/versions/3", "topic@staging", "other"]
    result = await client.infer_fanout("three", asked)
    versions = [e.version if isinstance(e, smile.FanoutAnswer) else type(e) for e in result.entries]
    topic = "tenants/acme/vplms/topic/versions"
    other = "tenants/acme/vplms/other/versions/1"
    assert versions == [f"{topic}/1", smile.NotFound, f"{topic}/3", f"{topic}/1", other]
    with pytest.raises(smile.NotFound, match="absent"):
        _ = result.answers
    one = (await client.infer_fanout("three", ["topic"])).answers[0]
    assert labels_of([one.prediction]) == ["5"]
    with pytest.raises(smile.InvalidArgument, match="targets"):
        await client.infer_fanout("three", [])
    with pytest.raises(smile.InvalidArgument, match="alias"):
        await client.infer_fanout("three", ["topic@No!"])
    with pytest.raises(TypeError, match="version"):
        await client.infer_fanout("three", ["topic"], version=1)  # type: ignore[call-arg]


async def test_bad_texts_are_refused(client: smile.AsyncClient) -> None:
    for texts, error, message in (
        (["x"] * 10_001, smile.TooManyTexts, "at most 10000 texts, got 10001: use infer_many"),
        ([b"x"], smile.InvalidArgument, r"texts\[0\] must be a str, got bytes"),
        (["ok", "\ud800"], smile.InvalidArgument, "not valid UTF-8"),
        ([], smile.InvalidArgument, "got 0"),
        (["x" * (17 << 20)], smile.InvalidArgument, "4194304|16777216|larger"),
    ):
        with pytest.raises(error, match=message):
            await client.infer("topic", texts)  # type: ignore[arg-type]
    with pytest.raises(smile.NotFound):
        await client.infer("absent", "x")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_many_texts_are_streamed_in_order_within_bounds(
    client: smile.AsyncClient, platform: World, asynchronous: bool
) -> None:
    platform.processor.answer_delay_s = 0.01
    platform.processor.failures = [overloaded(), overloaded(), overloaded()]
    texts = ["x" * (number % 50 + 1) for number in range(103)]

    async def later() -> AsyncIterator[str]:
        for text in texts:
            yield text

    source = later() if asynchronous else (text for text in texts)
    found = [p async for p in client.infer_many("topic", source, batch_size=10, concurrency=3)]
    assert labels_of(found) == [str(len(text)) for text in texts]
    assert sorted(platform.processor.batches) == [3] + 10 * [10]
    assert 1 < platform.processor.running_max <= 3


async def test_many_texts_end_with_the_first_error(
    client: smile.AsyncClient, platform: World
) -> None:
    found = []
    where = r"in the batch that begins with text 2: texts\[0\] must be a str"
    with pytest.raises(smile.InvalidArgument, match=where):
        async for prediction in client.infer_many("topic", ["a", "b", 3], batch_size=2):  # type: ignore[list-item]
            found.append(prediction)
    assert len(found) == 2
    platform.processor.failures = [overloaded(retry_after=0.2) for _ in range(100)]
    with pytest.raises(smile.Overloaded) as raised:
        _ = [p async for p in client.infer_many("topic", ["a"], timeout=0.5)]
    assert raised.value.retry_after == 0.2
    for options in ({"batch_size": 0}, {"batch_size": 10_001}, {"concurrency": 0}):
        with pytest.raises(smile.InvalidArgument, match="batch_size must be 1 to 10000"):
            _ = [p async for p in client.infer_many("topic", ["a"], **options)]  # type: ignore[arg-type]


async def test_leaving_a_stream_early_stops_its_requests(
    client: smile.AsyncClient, platform: World
) -> None:
    platform.processor.answer_delay_s = 0.02
    stream = client.infer_many("topic", ["x"] * 1000, batch_size=1, concurrency=2)
    async for _ in stream:
        break
    await stream.aclose()
    seen = len(platform.processor.batches)
    await asyncio.sleep(0.1)
    assert len(platform.processor.batches) <= seen + 2


# account


async def test_usage_has_every_vplm_beside_its_full_model(client: smile.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await created(client, name)
    await client.upload_dataset("rows", ROWS)
    usage = await client.usage()
    (toy,) = await client.backbones()
    assert [row.name.rpartition("/")[2] for row in usage.vplms] == ["a", "b", "c"]
    assert usage.vplm_count == 3 and usage.next_page_token == ""
    for row in usage.vplms:
        assert row.full_model_bytes >= toy.shape.bytes > row.serving_bytes > 0
    assert usage.stored_bytes > usage.dataset_bytes > 0


async def test_keys_are_made_listed_and_revoked(client: smile.AsyncClient, platform: World) -> None:
    made = await client.create_key("laptop")
    assert made.key not in repr(made) and isinstance(made, NewApiKey)
    async with smile.AsyncClient(made.key, endpoints=platform.endpoints) as other:
        assert other.tenant == "acme"
        assert len([key async for key in other.keys()]) == 2  # noqa: SIM118
        await client.revoke_key(made.api_key.name.rpartition("/")[2])
        with pytest.raises(smile.Unauthenticated):
            await other.usage()
    found = [key async for key in client.keys()]  # noqa: SIM118
    assert sorted(key.revoke_time is not None for key in found) == [False, True]
    with pytest.raises(smile.NotFound):
        await client.revoke_key("kaaaaaaaaaaaaaaa")


async def test_tenants_are_the_operators_alone(client: smile.AsyncClient, platform: World) -> None:
    for call in (client.create_tenant("more"), anext(client.tenants())):
        with pytest.raises(smile.PermissionDenied):
            await call
    async with smile.AsyncClient(platform.operator_key, endpoints=platform.endpoints) as operator:
        assert operator.tenant is None
        names = [tenant.name async for tenant in operator.tenants()]
        assert names == ["tenants/acme", "tenants/rival"]
        with pytest.raises(smile.AlreadyExists):
            await operator.create_tenant("acme")
        with pytest.raises(smile.InvalidArgument, match="no tenant of its own"):
            await operator.usage()
        assert (await operator.usage("acme")).name == "tenants/acme"
        extra = await operator.create_key("extra", tenant="acme")
        assert extra.key.startswith("smile_acme_k")
        assert len([key async for key in operator.keys("tenants/acme")]) == 2


async def test_one_tenant_cannot_reach_another(client: smile.AsyncClient, platform: World) -> None:
    await created(client)
    await client.upload_dataset("rows", ROWS)
    job = await client.train("topic", "rows")
    key = (await client.create_key()).api_key.name
    vplm, dataset = "tenants/acme/vplms/topic", "tenants/acme/datasets/rows"
    async with platform.client("rival") as rival:
        for call in (
            rival.infer(vplm, "x"),
            rival.version(vplm, 1),
            rival.set_alias(vplm, "serving", 1),
            rival.dataset(dataset),
            rival.delete_dataset(dataset),
            rival.upload_dataset("tenants/acme/datasets/planted", ROWS),
            rival.train(vplm, dataset),
            rival.job(job),
            rival.cancel(job),
            rival.revoke_key(key),
            rival.usage("acme"),
            rival.create_key(tenant="acme"),
            anext(rival.watch(job)),
            anext(rival.keys("acme")),
            anext(rival.versions(vplm)),
        ):
            with pytest.raises(smile.NotFound):
                await call
        for listed in (rival.vplms(), rival.datasets(), rival.jobs()):
            assert [item async for item in listed] == []
    assert len([d async for d in client.datasets()]) == 1


async def test_wrong_keys_are_refused(platform: World) -> None:
    right = platform.keys["acme"]
    wrong = right[:-1] + ("A" if right[-1] != "A" else "B")
    for key in (wrong, right.replace("_acme_", "_rival_")):
        async with smile.AsyncClient(key, endpoints=platform.endpoints) as client:
            for call in (client.backbones(), client.usage(), anext(client.jobs())):
                with pytest.raises(smile.Unauthenticated):
                    await call
