"""Calls that are wrong before anybody looks at what they ask: every RPC, from its contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

import smile
from smile.rpc.keys import KeyKind, new_key, new_tenant_key
from smile.rpc.principal import Role
from smile.v1 import creator_pb2, processor_pb2, storage_pb2
from tests.contract.every_rpc import (
    METHODS,
    REQUESTS,
    TENANT_METHODS,
    Belongings,
    Wire,
    furnish,
    holding,
    name_paths,
    roles,
    string_fields,
    value_at,
    wire,
    with_value,
)
from tests.contract.platform_world import Platform, platform_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT


class World:
    """A platform with one furnished tenant."""

    def __init__(self, platform: Platform, calls: Wire, acme: Belongings) -> None:
        self.platform = platform
        self.calls = calls
        self.acme = acme

    def key(self, method: str) -> dict[str, Any]:
        """A credential that may call it."""
        allowed = roles(METHODS[method])
        if Role.TENANT in allowed:
            return {"key": self.acme.key}
        if Role.OPERATOR in allowed:
            return {"key": self.platform.operator_key}
        return {"key": self.platform.service_key, "tenant": "acme"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with platform_world("acme") as platform, wire(platform) as calls:
        yield World(platform, calls, await furnish(platform, "acme"))


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_without_a_deadline_is_refused(world: World, method: str) -> None:
    outcome = await world.calls.call(method, b"", timeout_s=None, **world.key(method))
    assert (outcome.code, outcome.reason) == (INVALID, "DEADLINE_REQUIRED")
    assert "deadline" in outcome.message and "timeout" in outcome.message


def wrong_keys(world: World) -> dict[str, str | None]:
    """Keys that open nothing, by what is wrong with them."""
    good = world.acme.key
    return {
        "none": None,
        "empty": " ",
        "nonsense": "hunter2",
        "another secret": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "cut": good[:-1],
        "longer": good + "A",
        "upper case": good.upper(),
        "unknown": new_tenant_key(smile.names.TenantId("acme")).text,
        "unknown tenant": new_tenant_key(smile.names.TenantId("nobody")).text,
        "another operator": new_key(KeyKind.OPERATOR).text,
        "traversal": good.replace("_acme_", "_../acme_"),
        "long": "smile_" + "a" * 5000,
    }


@pytest.mark.parametrize("method", METHODS)
async def test_a_wrong_key_is_refused_before_anything_is_read(world: World, method: str) -> None:
    seen = set()
    for key in wrong_keys(world).values():
        outcome = await world.calls.call(method, b"\xff", key=key)
        assert (outcome.code, outcome.reason) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "KEY_INVALID",
        ), key
        seen.add(outcome.message)
        assert key is None or key.strip() == "" or key not in outcome.message
    assert len(seen) == 1, "which of them it was is not told"


async def test_another_service_key_is_told_apart_for_operators_sake(world: World) -> None:
    key = new_key(KeyKind.SERVICE).text
    for method in ("CreatorService.GetVplm", "StorageService.GetVplm"):
        outcome = await world.calls.call(method, b"", key=key, tenant="acme")
        assert outcome.reason == "SERVICE_KEY_INVALID"
        assert outcome.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_service_naming_nonsense_to_act_for(world: World) -> None:
    for tenant in ("", "../acme", "ACME", "acme ", "a" * 300):
        outcome = await world.calls.call(
            "StorageService.GetVplm", b"", key=world.platform.service_key, tenant=tenant
        )
        # spaces at the ends of metadata are no part of it (HTTP)
        allowed = {"INVALID_NAME", "REQUEST_INVALID" if tenant == "acme " else "INVALID_NAME"}
        assert outcome.code is INVALID and outcome.reason in allowed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [b"\x0a", b"\xff" * 20, b"\x0a\x05abc", b"\x80" * 11])
async def test_bytes_that_are_no_message(world: World, method: str, data: bytes) -> None:
    outcome = await world.calls.call(method, data, **world.key(method))
    assert (outcome.code, outcome.reason) == (INVALID, "REQUEST_MALFORMED"), outcome


UTF8 = {
    f"{name}:{'.'.join(where)}": (name, where)
    for name, method in TENANT_METHODS.items()
    for where, entry in string_fields(method.input_type)
    if not entry.is_repeated
}


@pytest.mark.parametrize("case", UTF8)
async def test_a_string_that_is_not_utf8(world: World, case: str) -> None:
    method, where = UTF8[case]
    marker = "MARKERMARKER"
    request = with_value(REQUESTS[method](world.acme, b"x"), where, marker)
    first = request[0] if isinstance(request, list) else request
    data = first.SerializeToString().replace(marker.encode(), b"\xff" + marker[1:].encode())
    before = await world.platform.store.snapshot()
    outcome = await world.calls.call(method, data, **world.key(method))
    assert (outcome.code, outcome.reason) == (INVALID, "REQUEST_MALFORMED")
    assert await world.platform.store.snapshot() == before


TRICKS = {
    "traversal": "../secret",
    "dots": "..",
    "slash": "a/b",
    "encoded": "%2e%2e",
    "cyrillic": "t\u043epic",
    "full width": "\uff54opic",
    "accent": "tópic",
    "upper case": "Topic",
    "trailing newline": "topic\n",
    "leading space": " topic",
    "nul": "topic\x00",
    "dash first": "-topic",
    "dash last": "topic-",
    "digit first": "1topic",
    "64": "a" * 64,
    "300": "a" * 300,
    "empty": "",
    "emoji": "🙂",
    "right to left": "\u202ecipot",
}
NAMED = [(name, where) for name, method in TENANT_METHODS.items() for where in name_paths(method)]


@pytest.mark.parametrize(("method", "where"), NAMED, ids=str)
async def test_name_tricks(world: World, method: str, where: tuple[str, ...]) -> None:
    before = await world.platform.store.snapshot()
    parts = value_at(holding(method, where)(world.acme, b"x"), where).split("/")
    for trick in TRICKS.values():
        for place in range(len(parts)):
            name = "/".join([*parts[:place], trick, *parts[place + 1 :]])
            request = with_value(holding(method, where)(world.acme, b"x"), where, name)
            outcome = await world.calls.call(method, request, **world.key(method))
            assert outcome.code is INVALID, (name, outcome)
            assert outcome.reason in ("INVALID_NAME", "REQUEST_INVALID"), (name, outcome)
            assert len(outcome.message) < 500
    assert await world.platform.store.snapshot() == before


IDS = ("CreatorService.CreateVplm", "vplm_id"), ("DatasetService.UploadDataset", "dataset_id")


@pytest.mark.parametrize(("method", "field"), IDS)
async def test_tricks_in_ids_of_what_is_to_be_made(world: World, method: str, field: str) -> None:
    before = await world.platform.store.snapshot()
    for trick in TRICKS.values():
        where = ("header", field) if method.startswith("Dataset") else (field,)
        request = with_value(REQUESTS[method](world.acme, b"x"), where, trick)
        outcome = await world.calls.call(method, request, **world.key(method))
        assert (outcome.code, outcome.reason) == (INVALID, "REQUEST_INVALID")
        assert outcome.error is not None
        assert [where for where, _ in outcome.error.violations] == [
            f"header.{field}" if method.startswith("Dataset") else field
        ]
    assert await world.platform.store.snapshot() == before


async def test_tricks_in_aliases(world: World) -> None:
    for alias in [*TRICKS.values(), "-"]:
        request = storage_pb2.SetAliasRequest(
            name=world.acme.vplm(), alias=alias, version=1, request_id=smile_id()
        )
        outcome = await world.calls.call("StorageService.SetAlias", request, key=world.acme.key)
        assert outcome.code is INVALID
        for method, asked in (
            ("ProcessorService.Infer", processor_pb2.InferRequest(texts=["a"])),
            ("StorageService.ResolveAlias", storage_pb2.ResolveAliasRequest()),
            ("StorageService.FetchAlias", storage_pb2.FetchAliasRequest()),
        ):
            if alias == "":
                continue  # means `serving`
            asked.name, asked.alias = world.acme.vplm(), alias
            outcome = await world.calls.call(method, asked, key=world.acme.key)
            assert outcome.code is INVALID


def smile_id() -> str:
    return "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, method in METHODS.items()
        if "request_id" in method.input_type.fields_by_name and name in REQUESTS
    ],
)
async def test_mutations_need_a_request_id(world: World, method: str) -> None:
    before = await world.platform.store.snapshot()
    for wrong in ("", "1", "x" * 36, "00000000-0000-4000-8000-00000000000", smile_id() + "\n"):
        request = with_value(REQUESTS[method](world.acme, b"x"), ("request_id",), wrong)
        outcome = await world.calls.call(method, request, **world.key(method))
        assert (outcome.code, outcome.reason) == (INVALID, "REQUEST_INVALID"), outcome
        assert "request_id" in outcome.message
    assert await world.platform.store.snapshot() == before


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        ("CreatorService.GetVplm", 4 << 20),
        ("StorageService.GetVersion", 4 << 20),
        ("ProcessorService.Infer", 16 << 20),
    ],
)
async def test_a_message_beyond_the_limit(world: World, method: str, limit: int) -> None:
    request = with_value(REQUESTS[method](world.acme, b""), ("name",), "x" * (limit + 1))
    outcome = await world.calls.call(method, request, key=world.acme.key)
    assert outcome.reason == "MESSAGE_TOO_LARGE"
    assert isinstance(outcome.error, smile.InvalidArgument)
    assert str(limit) in outcome.message
    value = int(outcome.error.metadata["value"])
    assert value > limit and str(value) in outcome.message


async def test_a_revoked_key_stops_within_five_seconds_everywhere(world: World) -> None:
    """Its holder has used it everywhere, so every service remembers it."""
    async with world.platform.client("acme") as client:
        made = await client.create_key("to be revoked")
    asked = (
        *("CreatorService.ListVplms", "StorageService.GetUsage"),
        *("TrainerService.ListTrainingJobs", "ProcessorService.GetStats"),
    )
    for method in asked:
        request = REQUESTS[method](world.acme, b"")
        outcome = await world.calls.call(method, request, key=made.key)
        assert outcome.code is grpc.StatusCode.OK
    world.platform.clock.advance(4.0)  # remembered, and not asked for anew
    async with world.platform.client("acme") as client:
        await client.revoke_key(made.api_key.name)
    world.platform.clock.advance(5.0)
    for method in asked:
        outcome = await world.calls.call(method, REQUESTS[method](world.acme, b""), key=made.key)
        assert (outcome.code, outcome.reason) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "KEY_INVALID",
        ), method
    for method in asked:
        outcome = await world.calls.call(
            method, REQUESTS[method](world.acme, b""), key=world.acme.key
        )
        assert outcome.code is grpc.StatusCode.OK, "another key of the same tenant"


async def test_a_revoked_key_stops_streams_that_it_began(world: World) -> None:
    """A job is watched; the key goes; the next event is not told."""
    job = world.acme.jobs[0]
    async with world.platform.client("acme") as client:
        made = await client.create_key("watching")
        watching = smile.AsyncClient(made.key, endpoints=world.platform.endpoints)
        async with watching:
            events = watching.watch(job)
            assert (await anext(events)).job is not None
            await client.revoke_key(made.api_key.name)
            world.platform.clock.advance(5.0)
            await client.cancel(job)
            with pytest.raises(smile.Unauthenticated):
                async for _ in events:
                    pytest.fail("told to a revoked key")


async def test_a_key_revoked_while_it_is_looked_up_stops_in_time(world: World) -> None:
    """Storage answers late: the answer is as old as the question."""
    store, clock = world.platform.store, world.platform.clock
    async with world.platform.client("acme") as client:
        made = await client.create_key("late")
        go, inner = asyncio.Event(), store.inner.get
        held: list[str] = []

        async def slow(key: str) -> Any:
            found = await inner(key)
            if made.api_key.name.rpartition("/")[2] in key and not go.is_set():
                held.append(key)
                await go.wait()
            return found

        store.inner.get = slow  # type: ignore[method-assign]
        try:
            request = creator_pb2.ListVplmsRequest(parent="tenants/acme")
            method = "CreatorService.ListVplms"
            asking = asyncio.create_task(world.calls.call(method, request, key=made.key))
            async with asyncio.timeout(5):
                while not held:  # noqa: ASYNC110 -- nothing tells
                    await asyncio.sleep(0.005)
            store.inner.get = inner  # type: ignore[method-assign]
            await client.revoke_key(made.api_key.name)
            clock.advance(1.5)
            go.set()
            assert (await asking).code is grpc.StatusCode.OK
            clock.advance(3.5)
        finally:
            store.inner.get = inner  # type: ignore[method-assign]
            go.set()
    outcome = await world.calls.call(method, request, key=made.key)
    assert outcome.reason == "KEY_INVALID"
