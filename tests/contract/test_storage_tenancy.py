"""No RPC of storage lets one tenant read, change or guess what is another's.

The cases are held against the contracts: an RPC without a case fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from smile.errors import NotFound, PermissionDenied, Unauthenticated
from smile.names import tenant_id
from smile.rpc.access import declared_access
from smile.rpc.keys import KeyKind, new_key, new_tenant_key
from smile.rpc.principal import Role
from smile.v1 import accounting_pb2 as A
from smile.v1 import datasets_pb2, identity_pb2, resources_pb2, storage_pb2
from smile.v1 import training_records_pb2 as records_pb2
from tests.contract.storage_world import (
    SERVICES,
    StorageWorld,
    commit_parts,
    job_pb,
    methods,
    new_id,
    put_parts,
    storage_world,
    upload_parts,
)
from tests.unit.services.storage.world import module

Requests = Message | Iterable[Message]


@dataclass(frozen=True)
class Names:
    """Whose resources a request names, and which."""

    tenant: str = "acme"
    vplm: str = "topics"
    dataset: str = "news"
    job: str = "j1"
    key: str = "kaaaaaaaaaaaaaaa"

    @property
    def parent(self) -> str:
        return f"tenants/{self.tenant}"

    @property
    def vplm_name(self) -> str:
        return f"{self.parent}/vplms/{self.vplm}"

    @property
    def version_name(self) -> str:
        return f"{self.vplm_name}/versions/1"

    @property
    def dataset_name(self) -> str:
        return f"{self.parent}/datasets/{self.dataset}"

    @property
    def job_name(self) -> str:
        return f"{self.parent}/trainingJobs/{self.job}"


S, D, I, R = storage_pb2, datasets_pb2, identity_pb2, records_pb2  # noqa: E741
CASES: dict[str, Callable[[Names], Requests]] = {
    "AccountingService.GetLimits": lambda n: A.GetLimitsRequest(name=n.parent),
    "AccountingService.SetLimits": lambda n: A.SetLimitsRequest(
        name=n.parent, limits=[A.LimitValue(limit=A.LIMIT_VPLMS, value=1)], request_id=new_id()
    ),
    "StorageService.CommitVplm": lambda n: commit_parts(n.vplm_name, module()),
    "StorageService.GetVplm": lambda n: S.GetVplmRecordRequest(name=n.vplm_name),
    "StorageService.ListVplms": lambda n: S.ListVplmRecordsRequest(parent=n.parent),
    "StorageService.UpdateVplm": lambda n: S.UpdateVplmRecordRequest(
        vplm=resources_pb2.Vplm(name=n.vplm_name, display_name="x"),
        update_mask=FieldMask(paths=["display_name"]),
        request_id=new_id(),
    ),
    "StorageService.DeleteVplm": lambda n: S.DeleteVplmRecordRequest(
        name=n.vplm_name, request_id=new_id()
    ),
    "StorageService.PutVersion": lambda n: put_parts(n.vplm_name, module()),
    "StorageService.GetVersion": lambda n: S.GetVersionRequest(name=n.version_name),
    "StorageService.ResolveAlias": lambda n: S.ResolveAliasRequest(name=n.vplm_name),
    "StorageService.FetchAlias": lambda n: S.FetchAliasRequest(name=n.vplm_name),
    "StorageService.ListVersions": lambda n: S.ListVersionsRequest(parent=n.vplm_name),
    "StorageService.DownloadVersion": lambda n: S.DownloadVersionRequest(name=n.version_name),
    "StorageService.SetAlias": lambda n: S.SetAliasRequest(
        name=n.vplm_name, alias="x", version=1, request_id=new_id()
    ),
    "StorageService.UndeleteVplm": lambda n: S.UndeleteVplmRecordRequest(
        name=n.vplm_name, request_id=new_id()
    ),
    "StorageService.RollbackAlias": lambda n: S.RollbackAliasRequest(
        name=n.vplm_name, request_id=new_id()
    ),
    "StorageService.ListAliasMoves": lambda n: S.ListAliasMovesRequest(parent=n.vplm_name),
    "StorageService.DeleteVersion": lambda n: S.DeleteVersionRequest(
        name=n.version_name, request_id=new_id()
    ),
    "StorageService.UndeleteVersion": lambda n: S.UndeleteVersionRequest(
        name=n.version_name, request_id=new_id()
    ),
    "StorageService.DiffVersions": lambda n: S.DiffVersionsRequest(
        base=n.version_name, other=n.version_name
    ),
    "StorageService.GetUsage": lambda n: S.GetUsageRequest(name=n.parent),
    "DatasetService.UploadDataset": lambda n: upload_parts(n.parent, n.dataset, b"x"),
    "DatasetService.GetDataset": lambda n: D.GetDatasetRequest(name=n.dataset_name),
    "DatasetService.ListDatasets": lambda n: D.ListDatasetsRequest(parent=n.parent),
    "DatasetService.DownloadDataset": lambda n: D.DownloadDatasetRequest(name=n.dataset_name),
    "DatasetService.DeleteDataset": lambda n: D.DeleteDatasetRequest(
        name=n.dataset_name, request_id=new_id()
    ),
    "IdentityService.CreateApiKey": lambda n: I.CreateApiKeyRequest(
        parent=n.parent, request_id=new_id()
    ),
    "IdentityService.ListApiKeys": lambda n: I.ListApiKeysRequest(parent=n.parent),
    "IdentityService.RevokeApiKey": lambda n: I.RevokeApiKeyRequest(
        name=f"{n.parent}/apiKeys/{n.key}", request_id=new_id()
    ),
    "TrainingRecordService.CreateTrainingRecord": lambda n: R.CreateTrainingRecordRequest(
        training_job=job_pb(n.job, n.tenant)
    ),
    "TrainingRecordService.UpdateTrainingRecord": lambda n: R.UpdateTrainingRecordRequest(
        record=R.TrainingRecord(training_job=job_pb(n.job, n.tenant), fence=9)
    ),
    "TrainingRecordService.GetTrainingRecord": lambda n: R.GetTrainingRecordRequest(
        name=n.job_name
    ),
    "TrainingRecordService.ListTrainingRecords": lambda n: R.ListTrainingRecordsRequest(
        parent=n.parent
    ),
    "TrainingRecordService.PutTrainingCurve": lambda n: [
        R.PutTrainingCurveRequest(name=n.job_name)
    ],
    "TrainingRecordService.GetTrainingCurve": lambda n: R.GetTrainingCurveRequest(name=n.job_name),
    "TrainingRecordService.PutTrainingCheckpoint": lambda n: [
        R.PutTrainingCheckpointRequest(
            header=R.PutTrainingCheckpointHeader(
                name=n.job_name, fence=9, size_bytes=1, digest=hashlib.sha256(b"x").hexdigest()
            )
        ),
        R.PutTrainingCheckpointRequest(chunk=b"x"),
    ],
    "TrainingRecordService.GetTrainingCheckpoint": lambda n: R.GetTrainingCheckpointRequest(
        name=n.job_name
    ),
}
# These name no tenant's resource; who may call them is tested all the same.
NAMELESS: dict[str, Callable[[Names], Requests]] = {
    "AccountingService.ReportUsage": lambda n: [
        A.ReportUsageRequest(reporter="a" * 32, day=str(datetime.now(UTC).date()))
    ],
    "AccountingService.ListUsage": lambda n: A.ListUsageRequest(),
    "IdentityService.CreateTenant": lambda n: I.CreateTenantRequest(
        tenant_id="third", request_id=new_id()
    ),
    "IdentityService.ListTenants": lambda n: I.ListTenantsRequest(),
    "IdentityService.ResolveApiKey": lambda n: I.ResolveApiKeyRequest(key="smile_x"),
    "TrainingRecordService.ListPendingTrainingRecords": lambda n: (
        R.ListPendingTrainingRecordsRequest()
    ),
}
ALL = {**CASES, **NAMELESS}
ROLES = {
    path.removeprefix("/smile.v1.").replace("/", "."): access.roles
    for path, access in declared_access(SERVICES).items()
}
FOREIGN = Names()
ABSENT = Names(tenant="nobody")


def _for(role: Role) -> list[str]:
    return sorted(rpc for rpc in CASES if role in ROLES[rpc])


@pytest_asyncio.fixture
async def world() -> AsyncIterator[StorageWorld]:
    async with storage_world() as made:
        await made.commit()
        await made.upload()
        await made.job()
        yield made


def test_every_rpc_has_a_case() -> None:
    assert set(ALL) == {f"{m.containing_service.name}.{m.name}" for m in methods()}


async def _snapshot(world: StorageWorld) -> list[tuple[str, bytes]]:
    found = []
    for info in await world.store.list_objects(""):
        stored = await world.store.get(info.key)
        assert stored is not None
        found.append((info.key, stored.data))
    return found


@pytest.mark.parametrize("rpc", _for(Role.TENANT))
@pytest.mark.asyncio
async def test_a_tenant_cannot_tell_foreign_from_absent(world: StorageWorld, rpc: str) -> None:
    before = await _snapshot(world)
    foreign = await world.error(rpc, CASES[rpc](FOREIGN), world.keys["other"])
    absent = await world.error(rpc, CASES[rpc](ABSENT), world.keys["other"])
    assert isinstance(foreign, NotFound)
    assert isinstance(absent, NotFound)
    assert foreign.message.replace("acme", "nobody") == absent.message
    assert foreign.reason == absent.reason
    assert foreign.metadata.keys() == absent.metadata.keys()
    assert await _snapshot(world) == before


@pytest.mark.parametrize("rpc", _for(Role.SERVICE))
@pytest.mark.asyncio
async def test_a_service_acts_for_one_tenant(world: StorageWorld, rpc: str) -> None:
    before = await _snapshot(world)
    foreign = await world.error(rpc, CASES[rpc](FOREIGN), world.service, "other")
    absent = await world.error(rpc, CASES[rpc](ABSENT), world.service, "other")
    assert isinstance(foreign, NotFound)
    assert foreign.message.replace("acme", "nobody") == absent.message
    unnamed = await world.error(rpc, CASES[rpc](FOREIGN), world.service)
    assert isinstance(unnamed, PermissionDenied)
    assert unnamed.reason == "TENANT_HEADER_REQUIRED"
    assert await _snapshot(world) == before


@pytest.mark.parametrize("rpc", sorted(ALL))
@pytest.mark.asyncio
async def test_roles_are_what_the_contract_says(world: StorageWorld, rpc: str) -> None:
    before = await _snapshot(world)
    callers = {
        Role.TENANT: (world.keys["acme"], None),
        Role.OPERATOR: (world.operator, None),
        Role.SERVICE: (world.service, "acme"),
    }
    assert ROLES[rpc] and ROLES[rpc] <= set(callers)
    for role, (key, tenant) in callers.items():
        if role not in ROLES[rpc]:
            refused = await world.error(rpc, ALL[rpc](FOREIGN), key, tenant)
            assert isinstance(refused, PermissionDenied), role
            assert refused.reason == "ROLE_NOT_ALLOWED"
    assert await _snapshot(world) == before


@pytest.mark.parametrize("rpc", sorted(ALL))
@pytest.mark.asyncio
async def test_bad_keys_all_look_the_same(world: StorageWorld, rpc: str) -> None:
    good = world.keys["acme"]
    bad = [
        "",
        "nonsense",
        good[:-1],
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        good.replace("acme", "other"),
        new_tenant_key(tenant_id("acme")).text,
        new_tenant_key(tenant_id("nobody")).text,
        new_key(KeyKind.OPERATOR).text,
        "smile_../../identity_kaaaaaaaaaaaaaaa_" + "a" * 43,
    ]
    errors = [await world.error(rpc, ALL[rpc](FOREIGN), key) for key in bad]
    assert all(isinstance(error, Unauthenticated) for error in errors)
    assert {(error.message, error.reason) for error in errors} == {
        (errors[0].message, "KEY_INVALID")
    }
    wrong_service = await world.error(rpc, ALL[rpc](FOREIGN), new_key(KeyKind.SERVICE).text, "acme")
    assert isinstance(wrong_service, Unauthenticated)


@pytest.mark.asyncio
async def test_a_revoked_key_stops_at_once(world: StorageWorld) -> None:
    made = I.CreateApiKeyRequest(parent="tenants/-", request_id=new_id())
    key = world.keys["acme"]
    (second,) = await world.call("IdentityService.CreateApiKey", made, key)
    listing = D.ListDatasetsRequest(parent="tenants/-")
    await world.call("DatasetService.ListDatasets", listing, second.key)
    revoke = I.RevokeApiKeyRequest(name=second.api_key.name, request_id=new_id())
    await world.call("IdentityService.RevokeApiKey", revoke, key)
    refused = await world.error("DatasetService.ListDatasets", listing, second.key)
    assert isinstance(refused, Unauthenticated)
    resolve = I.ResolveApiKeyRequest(key=second.key)
    resolved = await world.error("IdentityService.ResolveApiKey", resolve, world.service)
    assert isinstance(resolved, Unauthenticated)
    await world.call("DatasetService.ListDatasets", listing, key)


@pytest.mark.asyncio
async def test_a_tenant_may_not_name_a_tenant_in_metadata(world: StorageWorld) -> None:
    request = S.GetUsageRequest(name="tenants/acme")
    refused = await world.error("StorageService.GetUsage", request, world.keys["other"], "acme")
    assert isinstance(refused, PermissionDenied)


@pytest.mark.asyncio
async def test_the_operator_asks_for_any_tenant(world: StorageWorld) -> None:
    request = S.GetUsageRequest(name="tenants/acme")
    (usage,) = await world.call("StorageService.GetUsage", request, world.operator)
    assert usage.vplm_count == 1
    absent = S.GetUsageRequest(name="tenants/nobody")
    assert isinstance(
        await world.error("StorageService.GetUsage", absent, world.operator), NotFound
    )
    (tenants,) = await world.call(
        "IdentityService.ListTenants", I.ListTenantsRequest(), world.operator
    )
    assert [tenant.name for tenant in tenants.tenants] == ["tenants/acme", "tenants/other"]
