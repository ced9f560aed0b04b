"""The guard around every handler, seen by a client over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

import grpc
import pytest
import structlog
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from smile import errors
from smile.logs import LogFormat, LogLevel, configure
from smile.names import TenantId
from smile.rpc.access import AccessUndeclared
from smile.rpc.channel import (
    ApiKey,
    Credential,
    ServiceCredential,
    acting_for,
    build_channel,
    calling,
)
from smile.rpc.server import PortUnavailable, Readiness, RunningServer, build_server
from smile.testing import FakeAuthenticator, FakeKeys, serving, settings
from tests.contract.rpc_probe import (
    OPEN,
    PROBE,
    Item,
    Probe,
    ProbeClient,
    Request,
    probe_service,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


@dataclass
class World:
    keys: FakeKeys
    probe: Probe
    server: RunningServer
    log: StringIO

    @asynccontextmanager
    async def client(self, credentials: Credential | None) -> AsyncIterator[ProbeClient]:
        async with build_channel(self.server.address, credentials=credentials) as channel:
            yield ProbeClient(channel)

    @asynccontextmanager
    async def acme(self) -> AsyncIterator[ProbeClient]:
        async with self.client(ApiKey(self.keys.tenant("acme"))) as client:
            yield client

    @asynccontextmanager
    async def bare(self) -> AsyncIterator[ProbeClient]:
        """A client that adds nothing by itself: no deadline, no key."""
        async with grpc.aio.insecure_channel(self.server.address) as channel:
            yield ProbeClient(channel)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    async def call_event(self) -> dict[str, Any]:
        """The access line of the last call, which is written just after its answer."""
        for _ in range(200):
            if calls := [event for event in self.events() if event["event"] == "call"]:
                return calls[-1]
            await asyncio.sleep(0.01)
        raise AssertionError("no access line was written")


@pytest.fixture
def log() -> Iterator[StringIO]:
    stream = StringIO()
    configure("probe", LogLevel.INFO, LogFormat.JSON, stream=stream)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
def keys() -> FakeKeys:
    return FakeKeys()


@asynccontextmanager
async def world(keys: FakeKeys, log: StringIO, **changes: Any) -> AsyncIterator[World]:
    probe = Probe()
    async with serving(
        [probe_service(probe)],
        authenticator=FakeAuthenticator(keys),
        server_settings=settings(keys, **changes),
    ) as server:
        yield World(keys, probe, server, log)


async def failure(call: Any) -> errors.SmileError:
    with pytest.raises(errors.SmileError) as caught, calling():
        await call
    return caught.value


async def drain(responses: Any) -> list[Any]:
    with calling():
        return [response async for response in responses]


async def requests(*acts: str) -> AsyncIterator[Any]:
    for act in acts:
        yield Request(act=act)


async def test_all_four_shapes_are_answered(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        one = await client.unary(Request())
        assert one.text.startswith("tenant acme ")
        assert 0 < one.remaining_s <= 30.2  # gRPC rounds a timeout up
        assert len(await drain(client.download(Request()))) == 3
        assert (await client.upload(requests("a", "b"))).text.startswith("tenant acme ")
        assert len(await drain(client.chat(requests("a", "b")))) == 2


async def test_a_call_without_a_deadline_is_refused_in_every_shape(
    keys: FakeKeys, log: StringIO
) -> None:
    header = (("authorization", f"Bearer {keys.tenant('acme')}"),)
    async with world(keys, log) as it, it.bare() as client:
        for call in (
            client.unary(Request(), metadata=header),
            client.upload(requests("a"), metadata=header),
            drain(client.download(Request(), metadata=header)),
            drain(client.chat(requests("a"), metadata=header)),
        ):
            assert type(await failure(call)) is errors.DeadlineRequired
        assert it.probe.calls == 0


async def test_every_bad_key_gives_the_same_answer(keys: FakeKeys, log: StringIO) -> None:
    other = FakeKeys()
    valid = keys.tenant("acme")
    bad = [
        None, "", "Bearer", "Bearer ", "Bearer nonsense", valid, f"Basic {valid}",
        f"Bearer {valid}x", f"Bearer {valid[:-1]}", f"Bearer {other.tenant('acme')}",
        f"Bearer {other.tenant('globex')}", f"Bearer {other.operator}",
    ]  # fmt: skip
    seen = set()
    async with world(keys, log) as it, it.bare() as client:
        for header in bad:
            metadata = () if header is None else (("authorization", header),)
            error = await failure(client.unary(Request(), timeout=5, metadata=metadata))
            assert type(error) is errors.Unauthenticated
            seen.add((error.message, error.reason))
        twice = (("authorization", f"Bearer {valid}"),) * 2
        error = await failure(client.unary(Request(), timeout=5, metadata=twice))
        seen.add((error.message, error.reason))
        assert it.probe.calls == 0
    assert len(seen) == 1


async def test_a_role_the_contract_does_not_name_is_refused(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it:
        async with it.acme() as client:
            error = await failure(client.operate(Request()))
            assert type(error) is errors.PermissionDenied
            assert "operator" in error.message
            assert "tenant" in error.message
        async with it.client(ApiKey(keys.operator)) as client:
            assert (await client.operate(Request())).text.startswith("operator - ")
            assert type(await failure(client.unary(Request()))) is errors.PermissionDenied
        async with it.client(ServiceCredential(keys.service)) as client:
            assert type(await failure(client.operate(Request()))) is errors.PermissionDenied


async def test_a_tenant_cannot_say_it_acts_for_another(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        for named in ("globex", "acme", ""):
            call = client.unary(Request(), metadata=(("smile-tenant", named),))
            error = await failure(call)
            assert type(error) is errors.PermissionDenied
            assert error.reason == "TENANT_HEADER_NOT_ALLOWED"
        assert it.probe.calls == 0


async def test_a_service_acts_for_the_tenant_it_names(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it:
        async with it.client(ServiceCredential(keys.service)) as client:
            assert (await client.unary(Request())).text.startswith("service - ")
            with acting_for(TenantId("globex")):
                assert (await client.unary(Request())).text.startswith("service globex ")
            assert (await client.unary(Request())).text.startswith("service - ")
        fixed = ServiceCredential(keys.service, TenantId("acme"))
        async with it.client(fixed) as client:
            assert (await client.unary(Request())).text.startswith("service acme ")
        async with it.client(ServiceCredential(keys.service, TenantId("../x"))) as client:
            assert type(await failure(client.unary(Request()))) is errors.InvalidName
        async with it.client(ServiceCredential(FakeKeys().service)) as client:
            error = await failure(client.unary(Request()))
            assert error.reason == "SERVICE_KEY_INVALID"


async def test_broken_rules_are_all_named(keys: FakeKeys, log: StringIO) -> None:
    bad = Request(act="x" * 101, items=[Item(label="ok"), Item()])
    async with world(keys, log) as it, it.acme() as client:
        error = await failure(client.unary(bad))
        assert type(error) is errors.InvalidArgument
        assert error.reason == "REQUEST_INVALID"
        assert [field for field, _ in error.violations] == ["act", "items[1].label"]
        assert it.probe.calls == 0


async def test_hundreds_of_broken_rules_still_arrive(keys: FakeKeys, log: StringIO) -> None:
    bad = Request(items=[Item()] * 900)
    async with world(keys, log) as it, it.acme() as client:
        error = await failure(client.unary(bad))
        assert type(error) is errors.InvalidArgument
        assert "899 more" in error.message
        assert len(error.violations) == 20


async def test_each_streamed_message_is_validated(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        upload = client.upload(requests("fine", "x" * 101))
        assert type(await failure(upload)) is errors.InvalidArgument
        chat = client.chat(requests("fine", "x" * 101))
        assert type(await failure(drain(chat))) is errors.InvalidArgument
        assert type(await failure(drain(client.download(Request(act="x" * 101))))) is (
            errors.InvalidArgument
        )


@pytest.mark.parametrize("data", [b"\n\x02\xff\xfe", b"\n\x7f", b"\xff\xff\xff"])
async def test_bytes_that_are_no_request_are_the_callers_fault(
    keys: FakeKeys, log: StringIO, data: bytes
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    async with world(keys, log) as it, it.acme() as client:
        for call in (client.raw(data), drain(client.raw_chat(chunks()))):
            error = await failure(call)
            assert type(error) is errors.InvalidArgument
            assert error.reason == "REQUEST_MALFORMED"
    assert not [event for event in it.events() if event.get("exception")]


async def test_a_crash_is_internal_and_tells_no_cause(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        for call in (
            client.unary(Request(act="crash")),
            drain(client.download(Request(act="crash"))),
            client.upload(requests("crash")),
            drain(client.chat(requests("crash"))),
        ):
            error = await failure(call)
            assert type(error) is errors.Internal
            assert "globex" not in error.message
            logged = [
                event
                for event in it.events()
                if event.get("request_id") == error.metadata["request_id"]
            ]
            (trace,) = [event["exception"] for event in logged if "exception" in event]
            assert "RuntimeError: planted" in trace


async def test_errors_of_handlers_arrive_whole(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        absent = await failure(client.unary(Request(act="absent")))
        assert type(absent) is errors.NotFound
        assert (absent.message, absent.metadata) == (
            "tenants/acme/vplms/x does not exist",
            {"resource": "x"},
        )
        before = it.probe.calls
        full = await failure(client.unary(Request(act="full")))
        assert (type(full), full.retry_after) == (errors.Overloaded, 1.5)
        assert it.probe.calls == before + 1, "RESOURCE_EXHAUSTED must not be retried by itself"


async def test_what_is_our_fault_is_logged_with_its_cause(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        corrupted = await failure(client.unary(Request(act="corrupted")))
        assert type(corrupted) is errors.DataCorrupted
        wrong_key = await failure(client.unary(Request(act="misconfigured")))
        assert type(wrong_key) is errors.Internal, "the caller's key was good"
        traces = [event["exception"] for event in it.events() if "exception" in event]
    assert ["the digest is another" in trace for trace in traces] == [True, False]


async def test_a_status_set_by_hand_is_logged_as_it_is(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        error = await failure(client.unary(Request(act="abort")))
        assert (type(error), error.message) == (errors.InvalidArgument, "by hand")
        assert (await it.call_event())["code"] == "OUT_OF_RANGE"


async def test_an_oversized_message_is_named_as_such(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log, max_message_bytes=10_000) as it, it.acme() as client:
        error = await failure(client.unary(Request(padding=b"x" * 20_000)))
        assert type(error) is errors.InvalidArgument
        assert error.reason == "MESSAGE_TOO_LARGE"
        assert error.metadata["limit"] == "10000"
        assert int(error.metadata["value"]) > 20_000
        assert (await client.unary(Request(padding=b"x" * 5_000))).text


async def test_too_many_calls_at_once_are_refused_early(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log, concurrent_rpcs_max=1) as it, it.acme() as client:
        waiting = asyncio.ensure_future(client.unary(Request(act="wait")))
        await it.probe.inside.wait()
        error = await failure(client.unary(Request()))
        assert type(error) is errors.Overloaded
        assert error.retry_after is not None
        it.probe.release.set()
        assert (await waiting).text == "released"
        assert (await client.unary(Request())).text


async def test_too_many_bytes_at_once_are_refused_early(keys: FakeKeys, log: StringIO) -> None:
    bounds = {"max_message_bytes": 10_000, "call_bytes_max": 12_000}
    async with world(keys, log, **bounds) as it, it.acme() as client:
        waiting = asyncio.ensure_future(client.unary(Request(act="wait", padding=b"x" * 9_000)))
        await it.probe.inside.wait()
        assert (await client.unary(Request(padding=b"x" * 2_000))).text, "there is room for this"
        for call in (
            client.unary(Request(padding=b"x" * 4_000)),
            drain(client.download(Request(padding=b"x" * 4_000))),
            client.upload(padded(1_000, 4_000)),
            drain(client.chat(padded(1_000, 4_000))),
        ):
            error = await failure(call)
            assert type(error) is errors.Overloaded
            assert error.reason == "TOO_MANY_BYTES"
            assert error.metadata["limit"] == "12000"
            assert int(error.metadata["value"]) > 12_000
            assert error.retry_after is not None
            assert error.retry_after > 0
        it.probe.release.set()
        assert (await waiting).text == "released"
        assert (await client.upload(padded(9_000, 9_000, 9_000))).text, "one at a time"


async def padded(*sizes: int) -> AsyncIterator[Any]:
    for size in sizes:
        yield Request(padding=b"x" * size)


async def test_the_deadline_ends_the_handler(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        error = await failure(client.unary(Request(act="wait"), timeout=0.3))
        assert type(error) is errors.DeadlineExceeded
        await asyncio.wait_for(it.probe.ended.wait(), 5)
        assert (await it.call_event())["code"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("method", ["unary", "download"])
async def test_a_caller_that_leaves_cancels_the_handler(
    keys: FakeKeys, log: StringIO, method: str
) -> None:
    async with world(keys, log) as it, it.acme() as client:
        call = getattr(client, method)(Request(act="wait"))
        reading = asyncio.ensure_future(call if method == "unary" else drain(call))
        await it.probe.inside.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(it.probe.ended.wait(), 5)
        assert (await it.call_event())["code"] == "CANCELLED"


async def test_the_access_line_says_who_what_and_how(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        call = client.unary(Request(act="planted body"), metadata=(("smile-request-id", "r-1"),))
        reply = await call
        assert reply.text.endswith(" r-1")
        assert dict(await call.trailing_metadata())["smile-request-id"] == "r-1"
        event = await it.call_event()
        assert event["duration_ms"] >= 0
        del event["duration_ms"], event["timestamp"]
        assert event == {
            "event": "call",
            "level": "info",
            "service": "probe",
            "request_id": "r-1",
            "tenant": "acme",
            "role": "tenant",
            "method": f"/{PROBE}/Unary",
            "code": "OK",
        }
        assert "planted body" not in log.getvalue()
        assert keys.tenant("acme") not in log.getvalue()


async def test_errors_return_the_request_id_and_bad_ids_are_replaced(
    keys: FakeKeys, log: StringIO
) -> None:
    async with world(keys, log) as it, it.bare() as client:
        for offered in ("r-2", "no spaces", "x" * 65):
            call = client.unary(Request(), timeout=5, metadata=(("smile-request-id", offered),))
            await failure(call)
            given = dict(await call.trailing_metadata())["smile-request-id"]
            assert (given == offered) is (offered == "r-2")


async def test_deadline_and_request_id_pass_two_hops(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as far, far.client(ServiceCredential(keys.service)) as onward:
        near = Probe(onward)
        async with (
            serving([probe_service(near)], authenticator=FakeAuthenticator(keys)) as server,
            build_channel(server.address, credentials=ApiKey(keys.tenant("acme"))) as channel,
        ):
            reply = await ProbeClient(channel).unary(
                Request(act="hop"), timeout=3, metadata=(("smile-request-id", "r-3"),)
            )
    assert reply.text == "service - r-3"
    assert 0 < reply.remaining_s < 3, "the second hop asked for 60 s and gets what is left"


async def test_an_unknown_method_is_unimplemented(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, it.acme() as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.missing(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_server_whose_contract_names_no_roles_does_not_start(keys: FakeKeys) -> None:
    with pytest.raises(AccessUndeclared, match=f"/{OPEN}/Anyone"):
        build_server(
            [probe_service(Probe(), OPEN)],
            settings=settings(keys),
            authenticator=FakeAuthenticator(keys),
            readiness=Readiness(),
        )


async def test_a_port_in_use_is_one_clear_error(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it:
        with pytest.raises(PortUnavailable, match=f"127.0.0.1:{it.server.port}"):
            build_server(
                [probe_service(Probe())],
                settings=settings(keys, port=it.server.port),
                authenticator=FakeAuthenticator(keys),
                readiness=Readiness(),
            )


async def test_reflection_lists_services_without_a_key(keys: FakeKeys, log: StringIO) -> None:
    async with world(keys, log) as it, grpc.aio.insecure_channel(it.server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        async for response in stub.ServerReflectionInfo(asked):
            names = {service.name for service in response.list_services_response.service}
    assert {PROBE, "grpc.health.v1.Health"} <= names
