"""Storage over the wire: bytes in and out, quotas, names, pages, keys, and a store that fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable

import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from smile.errors import (
    AlreadyExists,
    DataCorrupted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
)
from smile.limits import GIB, MODULE_BYTES_MAX
from smile.rpc.keys import KeyParts
from smile.v1 import (
    datasets_pb2,
    identity_pb2,
    options_pb2,
    resources_pb2,
    storage_pb2,
    trainer_pb2,
)
from smile.v1 import training_records_pb2 as records_pb2
from tests.contract.storage_world import (
    StorageWorld,
    commit_parts,
    job_pb,
    new_id,
    put_parts,
    storage_world,
    upload_parts,
)
from tests.unit.services.storage.world import FaultyStore, bad_module, declared, module

pytestmark = pytest.mark.asyncio
S, D, I, R = storage_pb2, datasets_pb2, identity_pb2, records_pb2  # noqa: E741
VPLM = "tenants/acme/vplms/topics"


@pytest_asyncio.fixture
async def world() -> AsyncIterator[StorageWorld]:
    async with storage_world() as made:
        yield made


async def _keys(world: StorageWorld) -> list[str]:
    return [info.key for info in await world.store.list_objects("")]


async def test_the_journey_of_a_vplm(world: StorageWorld) -> None:
    made = await world.commit()
    assert (made.name, made.latest_version, dict(made.aliases)) == (VPLM, 1, {"serving": 1})
    key = world.keys["acme"]
    data = module(7)
    parts = put_parts("tenants/-/vplms/topics", data, note="better")
    (version,) = await world.call("StorageService.PutVersion", parts, key)
    assert (version.name, version.note) == (f"{VPLM}/versions/2", "better")
    move = S.SetAliasRequest(name=VPLM, alias="serving", version=2, etag="", request_id=new_id())
    (moved,) = await world.call("StorageService.SetAlias", move, key)
    assert dict(moved.aliases) == {"serving": 2}
    resolve = S.ResolveAliasRequest(name=VPLM)
    (serving,) = await world.call("StorageService.ResolveAlias", resolve, world.service, "acme")
    assert serving == version
    fetch = S.FetchAliasRequest(name=VPLM)
    (fetched,) = await world.call("StorageService.FetchAlias", fetch, world.service, "acme")
    assert (fetched.version, fetched.content) == (version, data)
    download = S.DownloadVersionRequest(name=version.name)
    first, *others = await world.call("StorageService.DownloadVersion", download, key)
    assert first.version == version
    assert b"".join(part.chunk for part in others) == data
    (usage,) = await world.call("StorageService.GetUsage", S.GetUsageRequest(name="tenants/-"), key)
    assert usage.vplms[0].size_bytes == len(data) + len(module())
    assert usage.vplms[0].full_model_bytes > usage.vplms[0].serving_bytes > 0
    assert usage.quota_bytes == GIB
    delete = S.DeleteVplmRecordRequest(name=VPLM, request_id=new_id())
    await world.call("StorageService.DeleteVplm", delete, world.service, "acme")
    assert isinstance(await world.error("StorageService.ResolveAlias", resolve, key), NotFound)


async def test_a_dataset_comes_back(world: StorageWorld) -> None:
    data = b"text,label\n" + b"x" * 2_500_000
    chunked = upload_parts("tenants/-", "news", b"")[:1]
    chunked[0].header.size_bytes = len(data)
    chunked[0].header.digest = declared(data).digest
    parts = [
        *chunked,
        *(
            D.UploadDatasetRequest(chunk=data[i : i + (1 << 20)])
            for i in range(0, len(data), 1 << 20)
        ),
    ]
    key = world.keys["acme"]
    (made,) = await world.call("DatasetService.UploadDataset", parts, key)
    (again,) = await world.call("DatasetService.UploadDataset", parts, key)
    assert again == made
    assert (made.name, made.size_bytes) == ("tenants/acme/datasets/news", len(data))
    request = D.DownloadDatasetRequest(name=made.name)
    for caller, tenant in ((key, None), (world.service, "acme")):
        first, *others = await world.call("DatasetService.DownloadDataset", request, caller, tenant)
        assert first.dataset == made
        digest = hashlib.sha256(b"".join(part.chunk for part in others)).hexdigest()
        assert digest == made.digest
        assert max(len(part.chunk) for part in others) <= 1 << 20
    delete = D.DeleteDatasetRequest(name=made.name, request_id=new_id())
    await world.call("DatasetService.DeleteDataset", delete, key)
    await world.call("DatasetService.DeleteDataset", delete, key)
    assert isinstance(
        await world.error("DatasetService.GetDataset", D.GetDatasetRequest(name=made.name), key),
        NotFound,
    )


Parts = Callable[[bytes], Iterable[Message]]
STREAMS: dict[str, Parts] = {
    "StorageService.CommitVplm": lambda data: commit_parts(VPLM, data),
    "StorageService.PutVersion": lambda data: put_parts("tenants/acme/vplms/base", data),
    "DatasetService.UploadDataset": lambda data: upload_parts("tenants/acme", "news", data),
}


def _caller(world: StorageWorld, rpc: str) -> tuple[str, str | None]:
    return (world.service, "acme") if "Commit" in rpc else (world.keys["acme"], None)


@pytest.mark.parametrize("rpc", sorted(STREAMS))
async def test_streams_that_are_not_as_declared(world: StorageWorld, rpc: str) -> None:
    await world.commit("base")
    before = await _keys(world)
    good = list(STREAMS[rpc](module()))
    chunk = type(good[0])
    wrong = {
        "HEADER_MISSING": [[], good[1:]],
        "HEADER_REPEATED": [[good[0], *good]],
        "STREAM_TRUNCATED": [good[:1], good[:-1]],
        "STREAM_TOO_LONG": [[*good, chunk(chunk=b"x")]],
        "DIGEST_MISMATCH": [[good[0], *list(STREAMS[rpc](module(3)))[1:]]],
        "REQUEST_INVALID": [
            [good[0], chunk(chunk=b"")],
            [chunk()],
            [good[0], chunk(chunk=b"x" * 1_048_577)],
        ],
    }
    for reason, streams in wrong.items():
        for stream in streams:
            error = await world.error(rpc, stream, *_caller(world, rpc))
            assert isinstance(error, InvalidArgument), (reason, error)
            assert error.reason == reason
    assert await _keys(world) == before
    await world.call(rpc, good, *_caller(world, rpc))


@pytest.mark.parametrize("rpc", ["StorageService.CommitVplm", "StorageService.PutVersion"])
async def test_weights_that_cannot_be_used(world: StorageWorld, rpc: str) -> None:
    await world.commit("base")
    before = await _keys(world)
    for data in (bad_module(), b"\x80\x04K\x01.", b"\xff" * 64, module()[:-2] + b"x" * 4):
        error = await world.error(rpc, STREAMS[rpc](data), *_caller(world, rpc))
        assert isinstance(error, InvalidArgument)
        assert error.reason == "MODULE_INVALID"
    assert await _keys(world) == before


async def test_a_client_that_goes_away_leaves_nothing(world: StorageWorld) -> None:
    await world.commit("base")
    before = await _keys(world)

    async def half(rpc: str) -> AsyncIterator[Message]:
        for part in list(STREAMS[rpc](module()))[:2]:
            yield part
        await asyncio.sleep(60)

    for rpc in STREAMS:
        call = asyncio.create_task(world.call(rpc, half(rpc), *_caller(world, rpc)))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await asyncio.sleep(0.1)
    assert await _keys(world) == before


async def test_two_gib_against_a_quota(world: StorageWorld) -> None:
    key = world.keys["acme"]
    parts = upload_parts("tenants/acme", "huge", b"x", size_bytes=2 * GIB)
    error = await world.error("DatasetService.UploadDataset", parts, key)
    assert isinstance(error, QuotaExceeded)
    assert error.reason == "QUOTA_EXCEEDED"
    assert str(GIB) in error.message
    assert str(2 * GIB) in error.message
    small = await world.create_tenant("small", quota_bytes=5_000)
    parts = upload_parts("tenants/small", "d", b"x", size_bytes=6_000)
    error = await world.error("DatasetService.UploadDataset", parts, small)
    assert isinstance(error, QuotaExceeded)
    assert (error.metadata["limit"], error.metadata["value"][:1]) == ("5000", "6")
    empty = upload_parts("tenants/acme", "empty", b"")
    error = await world.error("DatasetService.UploadDataset", empty, key)
    assert isinstance(error, InvalidArgument)
    await world.commit()
    big = put_parts(VPLM, b"x", size_bytes=MODULE_BYTES_MAX + 1)
    error = await world.error("StorageService.PutVersion", big, key)
    assert isinstance(error, InvalidArgument)
    assert str(MODULE_BYTES_MAX) in error.message


BAD_IDS = (
    "../x", "..", "x/../../other/vplms/y", "Topics", "töpics", "topics\u202e", "-x", "x-",
    "x" * 300, "x\n", "x\x00", " ", "\uff54opics", "x%2fy",
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_name_tricks(world: StorageWorld, bad: str) -> None:
    before = await _keys(world)
    key = world.keys["acme"]
    calls: list[tuple[str, Message | Iterable[Message], str, str | None]] = [
        (
            "DatasetService.GetDataset",
            D.GetDatasetRequest(name=f"tenants/acme/datasets/{bad}"),
            key,
            None,
        ),
        (
            "DatasetService.GetDataset",
            D.GetDatasetRequest(name=f"tenants/{bad}/datasets/d"),
            key,
            None,
        ),
        (
            "StorageService.GetVersion",
            S.GetVersionRequest(name=f"tenants/-/vplms/{bad}/versions/1"),
            key,
            None,
        ),
        (
            "StorageService.GetVersion",
            S.GetVersionRequest(name=f"{VPLM}/versions/{bad}"),
            key,
            None,
        ),
        ("DatasetService.UploadDataset", upload_parts("tenants/-", bad, b"x"), key, None),
        ("DatasetService.UploadDataset", upload_parts(f"tenants/{bad}", "d", b"x"), key, None),
        (
            "StorageService.CommitVplm",
            commit_parts(f"tenants/acme/vplms/{bad}", module()),
            world.service,
            "acme",
        ),
        (
            "StorageService.SetAlias",
            S.SetAliasRequest(name=VPLM, alias=bad, version=1, request_id=new_id()),
            key,
            None,
        ),
        (
            "IdentityService.CreateTenant",
            I.CreateTenantRequest(tenant_id=bad, request_id=new_id()),
            world.operator,
            None,
        ),
        (
            "IdentityService.RevokeApiKey",
            I.RevokeApiKeyRequest(name=f"tenants/-/apiKeys/{bad}", request_id=new_id()),
            key,
            None,
        ),
        (
            "TrainingRecordService.CreateTrainingRecord",
            R.CreateTrainingRecordRequest(training_job=job_pb(bad, "acme")),
            world.service,
            "acme",
        ),
        ("StorageService.GetUsage", S.GetUsageRequest(name=f"tenants/{bad}"), world.operator, None),
    ]
    for rpc, request, caller, tenant in calls:
        error = await world.error(rpc, request, caller, tenant)
        assert isinstance(error, InvalidArgument), (rpc, error)
    assert await _keys(world) == before


async def test_pages_over_the_wire(world: StorageWorld) -> None:
    key = world.keys["acme"]
    for number in range(5):
        await world.upload(f"d{number}")
    names: list[str] = []
    request = D.ListDatasetsRequest(parent="tenants/acme", page_size=2)
    while True:
        (page,) = await world.call("DatasetService.ListDatasets", request, key)
        names += [dataset.name for dataset in page.datasets]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert names == [f"tenants/acme/datasets/d{number}" for number in range(5)]
    request.page_token, request.page_size = "", 100_000
    (page,) = await world.call("DatasetService.ListDatasets", request, key)
    assert len(page.datasets) == 5
    request.page_size = -1
    error = await world.error("DatasetService.ListDatasets", request, key)
    assert isinstance(error, InvalidArgument)
    request.page_size, request.page_token = 2, "bm9wZQ"
    error = await world.error("DatasetService.ListDatasets", request, key)
    assert error.reason == "PAGE_TOKEN_INVALID"


async def test_a_token_of_one_tenant_is_useless_to_another(world: StorageWorld) -> None:
    for tenant in ("acme", "other"):
        for dataset in ("a", "b"):
            await world.upload(dataset, tenant)
    request = D.ListDatasetsRequest(parent="tenants/-", page_size=1)
    (page,) = await world.call("DatasetService.ListDatasets", request, world.keys["acme"])
    request.page_token = page.next_page_token
    error = await world.error("DatasetService.ListDatasets", request, world.keys["other"])
    assert error.reason == "PAGE_TOKEN_INVALID"


async def test_tenants_may_only_import(world: StorageWorld) -> None:
    await world.commit()
    for origin in (resources_pb2.VERSION_ORIGIN_TRAINING, resources_pb2.VERSION_ORIGIN_INITIAL):
        error = await world.error(
            "StorageService.PutVersion",
            put_parts(VPLM, module(1), origin=origin),
            world.keys["acme"],
        )
        assert isinstance(error, PermissionDenied)
        assert error.reason == "ORIGIN_NOT_ALLOWED"


async def test_keys_are_shown_once(world: StorageWorld) -> None:
    request = I.CreateTenantRequest(tenant_id="third", request_id=new_id())
    (first,) = await world.call("IdentityService.CreateTenant", request, world.operator)
    (again,) = await world.call("IdentityService.CreateTenant", request, world.operator)
    assert KeyParts.parse(first.key).tenant == "third"
    assert (again.key, again.tenant, again.api_key) == ("", first.tenant, first.api_key)
    taken = I.CreateTenantRequest(tenant_id="third", request_id=new_id())
    error = await world.error("IdentityService.CreateTenant", taken, world.operator)
    assert isinstance(error, AlreadyExists)
    more = I.CreateApiKeyRequest(parent="tenants/third", request_id=new_id())
    (second,) = await world.call("IdentityService.CreateApiKey", more, first.key)
    (repeated,) = await world.call("IdentityService.CreateApiKey", more, first.key)
    assert (repeated.key, repeated.api_key) == ("", second.api_key)
    resolve = I.ResolveApiKeyRequest(key=second.key)
    (holder,) = await world.call("IdentityService.ResolveApiKey", resolve, world.service)
    assert (holder.tenant, holder.role) == ("third", options_pb2.ROLE_TENANT)
    assert holder.api_key == second.api_key.name
    operator = I.ResolveApiKeyRequest(key=world.operator)
    (holder,) = await world.call("IdentityService.ResolveApiKey", operator, world.service)
    assert (holder.tenant, holder.role) == ("", options_pb2.ROLE_OPERATOR)
    for secret in (first.key, second.key, world.operator, world.service):
        tail = secret[-20:].encode()  # a secret may itself hold "_"
        for info in await world.store.list_objects(""):
            stored = await world.store.get(info.key)
            assert stored is not None
            assert tail not in stored.data


async def test_update_masks(world: StorageWorld) -> None:
    made = await world.commit()
    change = S.UpdateVplmRecordRequest(
        vplm=resources_pb2.Vplm(name=VPLM, display_name="New", labels={"a": "b"}, etag=made.etag),
        update_mask=FieldMask(paths=["display_name"]),
        request_id=new_id(),
    )
    (changed,) = await world.call("StorageService.UpdateVplm", change, world.service, "acme")
    assert (changed.display_name, dict(changed.labels)) == ("New", {})
    change.request_id = new_id()
    error = await world.error("StorageService.UpdateVplm", change, world.service, "acme")
    assert error.reason == "CONCURRENT_CHANGE"
    for paths in ([], ["spec"], ["display_name", "uid"]):
        del change.update_mask.paths[:]
        change.update_mask.paths.extend(paths)
        error = await world.error("StorageService.UpdateVplm", change, world.service, "acme")
        assert error.reason == "UPDATE_MASK_INVALID"


async def test_the_record_of_a_job(world: StorageWorld) -> None:
    await world.job()
    caller = (world.service, "acme")
    get = R.GetTrainingRecordRequest(name="tenants/acme/trainingJobs/j1")
    (record,) = await world.call("TrainingRecordService.GetTrainingRecord", get, *caller)
    record.training_job.state = trainer_pb2.TrainingJob.STATE_RUNNING
    record.fence = 2
    update = R.UpdateTrainingRecordRequest(record=record)
    (updated,) = await world.call("TrainingRecordService.UpdateTrainingRecord", update, *caller)
    assert updated == record
    record.fence = 1
    late = R.UpdateTrainingRecordRequest(record=record)
    error = await world.error("TrainingRecordService.UpdateTrainingRecord", late, *caller)
    assert error.reason == "CONCURRENT_CHANGE"
    (pending,) = await world.call(
        "TrainingRecordService.ListPendingTrainingRecords",
        R.ListPendingTrainingRecordsRequest(),
        world.service,
    )
    assert [item.training_job.name for item in pending.records] == [get.name]
    parts = [
        R.PutTrainingCurveRequest(
            name=get.name if number == 0 else "",
            fence=2 if number == 0 else 0,
            metrics=[
                trainer_pb2.TrainingMetric(name="loss", value=1.0, step=s) for s in range(5000)
            ],
        )
        for number in range(3)
    ]
    (kept,) = await world.call("TrainingRecordService.PutTrainingCurve", parts, *caller)
    assert kept.metric_count == 15_000
    record.fence = 2
    record.training_job.state = trainer_pb2.TrainingJob.STATE_SUCCEEDED
    ended = R.UpdateTrainingRecordRequest(record=record)
    await world.call("TrainingRecordService.UpdateTrainingRecord", ended, *caller)
    record.training_job.state = trainer_pb2.TrainingJob.STATE_FAILED
    again = R.UpdateTrainingRecordRequest(record=record)
    error = await world.error("TrainingRecordService.UpdateTrainingRecord", again, *caller)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "JOB_FINISHED"
    error = await world.error("TrainingRecordService.PutTrainingCurve", parts, *caller)
    assert error.reason == "JOB_FINISHED"
    curve = R.GetTrainingCurveRequest(name=get.name)
    pages = await world.call("TrainingRecordService.GetTrainingCurve", curve, *caller)
    assert [metric for page in pages for metric in page.metrics] == [
        metric for part in parts for metric in part.metrics
    ]
    (listed,) = await world.call(
        "TrainingRecordService.ListTrainingRecords",
        R.ListTrainingRecordsRequest(parent="tenants/acme"),
        *caller,
    )
    assert len(listed.records) == 1


async def test_damaged_bytes_end_with_data_loss(world: StorageWorld) -> None:
    made = await world.commit()
    (blob,) = [key for key in await _keys(world) if f"{made.uid}/blobs/" in key]
    await world.store.delete(blob)
    await world.store.put_if_absent(blob, module(9))
    request = S.DownloadVersionRequest(name=f"{VPLM}/versions/1")
    error = await world.error("StorageService.DownloadVersion", request, world.keys["acme"])
    assert isinstance(error, DataCorrupted)
    assert error.reason == "DIGEST_MISMATCH"


async def test_a_store_that_is_away_is_told_and_recovered_from() -> None:
    store = FaultyStore()
    async with storage_world(store) as world:
        await world.commit()
        away = Unavailable("the store is away", reason="STORE_UNAVAILABLE", retry_after=1.0)
        request = S.GetVersionRequest(name=f"{VPLM}/versions/1")
        key = world.keys["acme"]
        for fail_at in range(4):  # two reads for the key, two for the version
            store.arm(fail_at, after_effect=False, error=away)
            error = await world.error("StorageService.GetVersion", request, key)
            assert isinstance(error, Unavailable)
            assert error.retry_after == 1.0
        store.disarm()
        await world.call("StorageService.GetVersion", request, key)
