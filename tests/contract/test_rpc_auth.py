"""Keys resolved through storage: remembered, revoked in time, and kept while storage is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from smile import errors
from smile.names import ApiKeyName, tenant_id
from smile.rpc import auth
from smile.rpc.auth import KeyParts, Principal, RemoteAuthenticator, Role
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.freshness import Freshness
from smile.rpc.server import RunningServer
from smile.testing import FakeAuthenticator, FakeClock, FakeKeys, Service, serving
from smile.v1 import identity_pb2, identity_pb2_grpc, options_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Identity(identity_pb2_grpc.IdentityServiceServicer):
    """Storage's side, over `FakeKeys`."""

    def __init__(self, keys: FakeKeys) -> None:
        self.keys = keys
        self.asked = 0
        self.arrived = asyncio.Event()
        self.fault: errors.SmileError | None = None
        self.gate: asyncio.Event | None = None

    async def ResolveApiKey(
        self, request: identity_pb2.ResolveApiKeyRequest, context: Any
    ) -> identity_pb2.ResolveApiKeyResponse:
        self.asked += 1
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        holder = self.keys.holder(KeyParts.parse(request.key))
        if holder is None:
            raise errors.Unauthenticated("no such key")
        if holder.role is Role.OPERATOR:
            return identity_pb2.ResolveApiKeyResponse(role=options_pb2.ROLE_OPERATOR)
        assert holder.tenant is not None
        assert holder.key_id is not None
        return identity_pb2.ResolveApiKeyResponse(
            tenant=holder.tenant,
            role=options_pb2.ROLE_TENANT,
            api_key=str(ApiKeyName(holder.tenant, holder.key_id)),
        )

    # What the contract has besides is not under test here.
    CreateTenant = ListTenants = CreateApiKey = ListApiKeys = RevokeApiKey = None  # type: ignore[assignment]


@dataclass
class World:
    keys: FakeKeys
    identity: Identity
    storage: RunningServer
    clock: FakeClock
    remote: RemoteAuthenticator
    freshness: Freshness

    async def holder(self, key: str) -> Principal:
        return await self.remote.authenticate(key, None)


@asynccontextmanager
async def world(service_key: str | None = None) -> AsyncIterator[World]:
    keys, clock = FakeKeys(), FakeClock()
    identity = Identity(keys)
    service = Service(
        identity,
        identity_pb2_grpc.add_IdentityServiceServicer_to_server,
        "smile.v1.IdentityService",
    )
    own = service_key or keys.service
    async with (
        serving([service], authenticator=FakeAuthenticator(keys)) as storage,
        build_channel(storage.address, credentials=ServiceCredential(own)) as channel,
    ):
        freshness = Freshness()
        remote = RemoteAuthenticator(channel, own, clock=clock, freshness=freshness)
        yield World(keys, identity, storage, clock, remote, freshness)


async def until_refused(it: World, key: str) -> None:
    for _ in range(500):
        await it.holder(key)
        await asyncio.sleep(0.01)


async def test_keys_are_resolved_and_remembered() -> None:
    async with world() as it:
        key = it.keys.tenant("acme")
        for _ in range(3):
            holder = await it.holder(key)
            assert (holder.role, holder.tenant) == (Role.TENANT, "acme")
            assert holder.key_id == KeyParts.parse(key).key_id
        assert it.identity.asked == 1
        assert await it.holder(it.keys.operator) == Principal(Role.OPERATOR)


async def test_service_keys_are_checked_without_asking() -> None:
    async with world() as it:
        assert await it.remote.authenticate(it.keys.service, "acme") == Principal(
            Role.SERVICE, tenant_id("acme")
        )
        for wrong in (FakeKeys().service, it.keys.service[:-1], "smilesvc_"):
            with pytest.raises(errors.Unauthenticated):
                await it.remote.authenticate(wrong, "acme")
        assert it.identity.asked == 0


async def test_malformed_keys_never_reach_storage() -> None:
    async with world() as it:
        for key in ("", "x", "smile_acme_k_x", "smile_ACME_" + it.keys.tenant("acme")[11:]):
            with pytest.raises(errors.Unauthenticated):
                await it.holder(key)
        assert it.identity.asked == 0


async def test_a_revoked_key_stops_within_five_seconds() -> None:
    async with world() as it:
        key = it.keys.tenant("acme")
        await it.holder(key)
        it.keys.revoke("acme")
        it.clock.advance(4.9)
        await it.holder(key)
        it.clock.advance(0.2)
        with pytest.raises(errors.Unauthenticated):
            await it.holder(key)
        it.identity.fault = errors.Unavailable("the object store is away")
        it.clock.advance(3)
        with pytest.raises(errors.Unavailable):
            await it.holder(key)  # once refused, a key has nothing stale to live on


async def test_a_refusal_is_remembered_for_two_seconds() -> None:
    async with world() as it:
        key = FakeKeys().tenant("acme")
        for _ in range(3):
            with pytest.raises(errors.Unauthenticated):
                await it.holder(key)
        assert it.identity.asked == 1
        it.clock.advance(2.1)
        with pytest.raises(errors.Unauthenticated):
            await it.holder(key)
        assert it.identity.asked == 2


async def test_known_keys_outlive_storage_for_five_minutes() -> None:
    async with world() as it:
        known, unknown = it.keys.tenant("acme"), it.keys.tenant("globex")
        await it.holder(known)
        await it.storage.stop(0)
        it.clock.advance(10)
        assert (await it.holder(known)).tenant == "acme"
        with pytest.raises(errors.Unavailable):
            await it.holder(unknown)
        it.clock.advance(289)
        assert (await it.holder(known)).tenant == "acme"
        it.clock.advance(2)
        with pytest.raises(errors.Unavailable):
            await it.holder(known)


async def test_while_storage_is_away_a_known_key_asks_once_a_second() -> None:
    async with world() as it:
        key = it.keys.tenant("acme")
        await it.holder(key)
        it.identity.fault = errors.Overloaded("full", retry_after=1)
        it.clock.advance(6)
        for _ in range(5):
            await it.holder(key)
        assert it.identity.asked == 2
        it.identity.fault, it.identity.gate = None, asyncio.Event()
        it.keys.revoke("acme")
        it.clock.advance(1.1)
        for _ in range(5):
            await it.holder(key)  # answered at once: nobody waits for the question asked beside it
        it.identity.gate.set()
        with pytest.raises(errors.Unauthenticated):
            await until_refused(it, key)
        assert it.identity.asked == 3


async def test_one_question_at_a_time_that_no_asker_can_cancel() -> None:
    async with world() as it:
        it.identity.gate = asyncio.Event()
        key = it.keys.tenant("acme")
        askers = [asyncio.create_task(it.holder(key)) for _ in range(10)]
        await asyncio.wait_for(it.identity.arrived.wait(), 5)
        askers[0].cancel()
        it.identity.gate.set()
        results = await asyncio.gather(*askers, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert {holder.tenant for holder in results[1:] if isinstance(holder, Principal)} == {
            "acme"
        }
        assert it.identity.asked == 1


async def test_a_tenant_header_is_refused_only_after_the_key() -> None:
    async with world() as it:
        with pytest.raises(errors.PermissionDenied):
            await it.remote.authenticate(it.keys.tenant("acme"), "globex")
        with pytest.raises(errors.PermissionDenied):
            await it.remote.authenticate(it.keys.operator, "globex")
        with pytest.raises(errors.Unauthenticated):
            await it.remote.authenticate(FakeKeys().tenant("acme"), "globex")


async def test_a_wrong_key_of_our_own_is_not_blamed_on_the_caller() -> None:
    async with world(service_key=FakeKeys().service) as it:
        with pytest.raises(errors.Internal, match="own key"):
            await it.holder(it.keys.tenant("acme"))


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "KEYS_REMEMBERED_MAX", 3)
    async with world() as it:
        for number in range(5):
            await it.holder(it.keys.tenant(f"tenant-{number}"))
        assert it.identity.asked == 5
        await it.holder(it.keys.tenant("tenant-4"))
        assert it.identity.asked == 5
        await it.holder(it.keys.tenant("tenant-0"))
        assert it.identity.asked == 6


def followed(it: World) -> Freshness:
    """A feed that has just opened and covers all that is asked for from now on."""
    it.freshness.opened(since=it.clock(), as_of=it.clock(), doubt_s=10.0)
    return it.freshness


async def test_a_feed_keeps_keys_known_and_the_operators_key_is_not_its_business() -> None:
    async with world() as it:
        feed, key = followed(it), it.keys.tenant("acme")
        for _ in range(20):
            await it.holder(key)
            await it.holder(it.keys.operator)
            it.clock.advance(6.0)
            feed.beat(it.clock() - 1.0)
        assert it.identity.asked == 1 + 20


async def test_a_key_that_the_feed_names_is_not_believed_even_where_storage_is_away() -> None:
    async with world() as it:
        feed, key = followed(it), it.keys.tenant("acme")
        other = it.keys.tenant("rival")
        await it.holder(key)
        await it.holder(other)
        feed.told(f"tenants/acme/apiKeys/{KeyParts.parse(key).key_id}", it.clock())
        it.identity.fault = errors.Unavailable("away")
        with pytest.raises(errors.Unavailable):
            await it.holder(key)
        assert (await it.holder(other)).tenant == "rival"
        it.identity.fault = None
        it.keys.revoke("acme")
        with pytest.raises(errors.Unauthenticated):
            await it.holder(key)


async def test_a_feed_that_is_lost_lets_keys_age() -> None:
    async with world() as it:
        feed, key = followed(it), it.keys.tenant("acme")
        await it.holder(key)
        it.clock.advance(60.0)
        feed.beat(it.clock())
        feed.lost()
        it.keys.revoke("acme")
        it.clock.advance(4.9)
        await it.holder(key)
        it.clock.advance(0.2)
        with pytest.raises(errors.Unauthenticated):
            await it.holder(key)
