"""A tenant cannot read, list, guess or influence what is another's: every RPC, every name in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

import smile
from smile.rpc.principal import Role
from smile.v1 import storage_pb2
from tests.contract.every_rpc import (
    FREE,
    METHODS,
    NAMES,
    OUTPUT,
    REQUESTS,
    SHARED,
    TENANT_METHODS,
    UNUSABLE,
    Belongings,
    Outcome,
    Wire,
    furnish,
    holding,
    name_paths,
    roles,
    stock,
    string_fields,
    value_at,
    wire,
    with_value,
)
from tests.contract.platform_world import Platform, platform_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMED = {name: method for name, method in TENANT_METHODS.items() if name_paths(method)}


class World:
    """Two tenants with the same kinds of belongings, who do not know of each other."""

    def __init__(
        self, platform: Platform, calls: Wire, acme: Belongings, rival: Belongings
    ) -> None:
        self.platform = platform
        self.calls = calls
        self.acme = acme
        self.rival = rival
        self.weights: dict[str, bytes] = {}

    async def ask(self, own: Belongings, method: str, request: Any, **how: Any) -> Outcome:
        return await self.calls.call(method, request, key=own.key, **how)

    def request(self, own: Belongings, method: str, where: tuple[str, ...] = ()) -> Any:
        """One that has something at `where`."""
        return holding(method, where)(own, self.weights[own.tenant])

    async def of(self, own: Belongings) -> dict[str, str]:
        """All that is stored of a tenant."""
        stored = await self.platform.store.snapshot()
        return {key: digest for key, digest in stored.items() if f"/{own.tenant}" in key}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with platform_world("acme", "rival") as platform, wire(platform) as calls:
        made = World(
            platform, calls, await furnish(platform, "acme"), await furnish(platform, "rival")
        )
        await stock(platform, made.acme)
        for own in (made.acme, made.rival):
            request = storage_pb2.DownloadVersionRequest(name=f"{own.vplm()}/versions/1")
            found = await made.ask(own, "StorageService.DownloadVersion", request)
            made.weights[own.tenant] = b"".join(
                part.chunk
                for part in found.responses
                if isinstance(part, storage_pb2.DownloadVersionResponse)
            )
        yield made


async def test_every_string_of_every_request_is_classified() -> None:
    unknown = [
        f"{name}: {entry.full_name}"
        for name, method in TENANT_METHODS.items()
        for _, entry in string_fields(method.input_type)
        if entry.full_name not in NAMES | SHARED | OUTPUT | UNUSABLE and entry.name not in FREE
    ]
    assert unknown == [], "say in every_rpc/areas whether these name a tenant's resource"


async def test_every_rpc_of_tenants_has_a_request() -> None:
    assert set(REQUESTS) == set(TENANT_METHODS)


def foreign(world: World, method: str, where: tuple[str, ...]) -> list[str]:
    """Names of rival's: one that exists, and the same with ids nobody has."""
    existing = value_at(world.request(world.rival, method, where), where)
    *front, last = existing.split("/")
    other = "9" if last.isdecimal() else f"{last[:1]}zzzzzzzzzzzzzzz"[: len(last)]
    absent = "/".join([*front, other])
    nobodys = existing.replace("/rival", "/nobody", 1)
    return [existing, absent, nobodys]


def own_absent(world: World, method: str, where: tuple[str, ...]) -> list[str]:
    mine = value_at(world.request(world.acme, method, where), where)
    if mine.count("/") == 1:
        return []  # one's own tenant exists
    *front, last = mine.split("/")
    if last.isdecimal():
        return [f"{'/'.join(front)}/9", "tenants/acme/vplms/zzz/versions/1"]
    return ["/".join([*front, f"{last[:1]}zzzzzzzzzzzzzzz"])]


@pytest.mark.parametrize("method", NAMED)
async def test_foreign_and_absent_look_the_same(world: World, method: str) -> None:
    before = await world.of(world.rival)
    for where in name_paths(METHODS[method]):
        seen = {}
        for name in (*foreign(world, method, where), *own_absent(world, method, where)):
            request = with_value(world.request(world.acme, method, where), where, name)
            outcome = await world.ask(world.acme, method, request)
            assert outcome.code is grpc.StatusCode.NOT_FOUND, (name, outcome)
            seen[name] = outcome.without(name)
        assert len(set(map(repr, seen.values()))) == 1, seen
    assert await world.of(world.rival) == before


@pytest.mark.parametrize("method", TENANT_METHODS)
async def test_the_same_request_succeeds_on_what_is_ones_own(world: World, method: str) -> None:
    """So that the refusals above are for the name, and for nothing else."""
    before = await world.of(world.rival)
    outcome = await world.ask(world.acme, method, world.request(world.acme, method))
    assert outcome.code is grpc.StatusCode.OK, outcome
    assert not any("rival" in str(response) for response in outcome.responses)
    assert await world.of(world.rival) == before


@pytest.mark.parametrize("method", NAMED)
async def test_a_dash_is_ones_own_tenant(world: World, method: str) -> None:
    """Reads, that is; destroying was tried with the full name."""
    if not method.partition(".")[2].startswith(("Get", "List", "Download", "Infer", "Resolve")):
        return
    for where in name_paths(METHODS[method]):
        request = world.request(world.rival, method, where)
        name = value_at(request, where).replace("tenants/rival", "tenants/-")
        outcome = await world.ask(world.rival, method, with_value(request, where, name))
        assert outcome.code is grpc.StatusCode.OK, outcome
        assert not any("acme" in str(response) for response in outcome.responses)


@pytest.mark.parametrize("method", METHODS)
async def test_only_the_roles_that_the_contract_names_may_call(world: World, method: str) -> None:
    """Refused before the request is looked at: these bytes parse as nothing."""
    keys = {
        Role.TENANT: (world.acme.key, None),
        Role.OPERATOR: (world.platform.operator_key, None),
        Role.SERVICE: (world.platform.service_key, "acme"),
    }
    for role, (key, tenant) in keys.items():
        if role in roles(METHODS[method]):
            continue
        outcome = await world.calls.call(method, b"\xff", key=key, tenant=tenant)
        assert (outcome.code, outcome.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "ROLE_NOT_ALLOWED",
        )
        assert role.value in outcome.message


@pytest.mark.parametrize("method", METHODS)
async def test_nobody_but_services_names_the_tenant_to_act_for(world: World, method: str) -> None:
    for key in (world.acme.key, world.platform.operator_key):
        for tenant in ("rival", "acme", ""):
            outcome = await world.calls.call(method, b"\xff", key=key, tenant=tenant)
            assert (outcome.code, outcome.reason) == (
                grpc.StatusCode.PERMISSION_DENIED,
                "TENANT_HEADER_NOT_ALLOWED",
            )


@pytest.mark.parametrize("method", [name for name in NAMED if Role.SERVICE in roles(METHODS[name])])
async def test_a_service_reaches_only_the_tenant_it_acts_for(world: World, method: str) -> None:
    key = world.platform.service_key
    request = world.request(world.acme, method)
    outcome = await world.calls.call(method, request, key=key, tenant="rival")
    assert outcome.code is grpc.StatusCode.NOT_FOUND
    outcome = await world.calls.call(method, request, key=key)
    assert outcome.reason == "TENANT_HEADER_REQUIRED"


LISTS = {
    name: method
    for name, method in TENANT_METHODS.items()
    if "page_token" in method.input_type.fields_by_name
}


@pytest.mark.parametrize("method", LISTS)
async def test_page_tokens_carry_no_authority(world: World, method: str) -> None:
    request = world.request(world.acme, method)
    request.page_size = 1
    page: Any = (await world.ask(world.acme, method, request)).responses[0]
    if method in ("CreatorService.ListBackbones", "CreatorService.ListPublicAdapters"):
        return  # shared by all
    token = page.next_page_token
    assert token, "the tenant has two of everything"
    theirs = world.request(world.rival, method)
    theirs.page_token = token
    outcome = await world.ask(world.rival, method, theirs)
    assert outcome.reason == "PAGE_TOKEN_INVALID", outcome
    request.page_token = token
    following = await world.ask(world.acme, method, request)
    assert following.code is grpc.StatusCode.OK
    assert "rival" not in str(following.responses)
    stolen = await world.ask(world.rival, method, request)
    assert stolen.code is grpc.StatusCode.NOT_FOUND
    for forged in ("x", token[:-2], token + "A", "\x00", "ü", "W10", "e30", "9" * 1024):
        request.page_token = forged
        outcome = await world.ask(world.acme, method, request)
        assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT, (forged, outcome)


async def test_request_ids_of_one_tenant_mean_nothing_to_another(world: World) -> None:
    """Whatever A sent under an id, B's request with that id is B's own, and a new one."""
    for method in NAMED:
        if method.endswith(("DeleteDataset", "RevokeApiKey", "CancelTrainingJob")):
            continue  # they answer nothing
        if method.endswith(("eleteVplm", "eleteVersion")):
            continue  # there is one of each to do this to, and it was done above
        first = world.request(world.acme, method)
        head = first[0].header if isinstance(first, list) else first
        if "request_id" not in head.DESCRIPTOR.fields_by_name:
            continue
        if method.endswith("CreateTrainingJob"):
            head.validate_only = False
        assert (await world.ask(world.acme, method, first)).code is grpc.StatusCode.OK
        second = world.request(world.rival, method)
        other = second[0].header if isinstance(second, list) else second
        other.request_id = head.request_id
        for field in ("vplm_id", "dataset_id"):
            if field in head.DESCRIPTOR.fields_by_name:
                setattr(other, field, getattr(head, field))
        outcome = await world.ask(world.rival, method, second)
        assert outcome.code is grpc.StatusCode.OK, outcome
        (response,) = outcome.responses
        assert "tenants/rival" in str(response) and "acme" not in str(response)


async def test_names_inside_a_resource_that_servers_set_are_not_read(world: World) -> None:
    method = "TrainerService.CreateTrainingJob"
    request = world.request(world.acme, method)
    request.training_job.name = world.rival.jobs[0]
    request.training_job.version = f"{world.rival.vplm()}/versions/1"
    outcome = await world.ask(world.acme, method, request)
    (job,) = outcome.responses
    assert job.name.startswith("tenants/acme/trainingJobs/") and job.version == ""  # type: ignore[attr-defined]
    method = "StorageService.PutVersion"
    seen = set()
    for job_name in (world.rival.jobs[0], "tenants/rival/trainingJobs/jzzz", world.acme.jobs[0]):
        request = with_value(
            world.request(world.acme, method), ("header", "training_job"), job_name
        )
        outcome = await world.ask(world.acme, method, request)
        assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT
        seen.add(repr(outcome.without(job_name)))
    assert len(seen) == 1


async def test_anothers_secret_under_ones_own_name_opens_nothing(world: World) -> None:
    def parts(own: Belongings) -> list[str]:
        return own.key.split("_", 3)

    acme, rival = parts(world.acme), parts(world.rival)
    mixed = [
        [acme[0], rival[1], *acme[2:]],
        [*acme[:2], rival[2], acme[3]],
        [*acme[:3], rival[3]],
        [*acme[:2], *rival[2:]],
    ]
    for tried in mixed:
        for method in ("CreatorService.ListVplms", "StorageService.GetUsage"):
            request = world.request(world.acme, method)
            outcome = await world.calls.call(method, request, key="_".join(tried))
            assert outcome.reason == "KEY_INVALID", outcome


async def test_an_answer_in_memory_is_for_its_tenant_alone(world: World) -> None:
    """The processor knows acme's `topic` by heart; rival's `topic` has other weights."""
    infer = "ProcessorService.Infer"
    answers = {}
    for own in (world.acme, world.rival, world.acme):
        request = with_value(world.request(own, infer), ("name",), "tenants/-/vplms/topic")
        (found,) = (await world.ask(own, infer, request)).responses
        answers[own.tenant] = found.version  # type: ignore[attr-defined]
    assert answers == {
        tenant: f"tenants/{tenant}/vplms/topic/versions/1" for tenant in ("acme", "rival")
    }
    stolen = with_value(world.request(world.acme, infer), ("name",), world.rival.vplm())
    async with world.platform.client("acme") as client:
        before = await client.stats()
        assert (await world.ask(world.acme, infer, stolen)).code is grpc.StatusCode.NOT_FOUND
        assert (await client.stats()).module_loads_total == before.module_loads_total


async def test_equal_bytes_of_two_tenants_are_kept_and_fail_apart(world: World) -> None:
    """Both have the same initial weights; acme's rot, rival's do not notice."""
    made = {}
    for own in (world.acme, world.rival):
        async with world.platform.client(own.tenant) as client:
            await client.create_vplm(
                "twin", backbone="toy", pet=smile.Pfeiffer(rank=4), labels=["a", "b"], seed=77
            )
            made[own.tenant] = (await client.version("twin")).digest
    assert made["acme"] == made["rival"]
    stored = await world.platform.store.snapshot()
    (blob,) = (key for key in stored if made["acme"] in key and "/acme/" in key and "/twin/" in key)
    await world.platform.store.overwrite(blob, b"rot")
    infer = "ProcessorService.Infer"

    def ask(own: Belongings) -> Any:
        request = with_value(world.request(own, infer), ("name",), own.vplm("twin"))
        return world.ask(own, infer, request)

    mine, theirs = await asyncio.gather(ask(world.acme), ask(world.rival))
    assert (mine.code, theirs.code) == (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.OK)


async def test_what_is_listed_and_counted_is_ones_own(world: World) -> None:
    async with world.platform.client("acme") as acme, world.platform.client("rival") as rival:
        before = await rival.usage()
        await acme.create_vplm(
            "quiet", backbone="toy", pet=smile.Pfeiffer(rank=4), labels=["a", "b"]
        )
        await acme.create_key()
        assert await rival.usage() == before
        for listed in (rival.vplms(), rival.datasets(), rival.jobs(), rival.keys()):
            names = [item.name async for item in listed]
            assert names and all(name.startswith("tenants/rival/") for name in names)
