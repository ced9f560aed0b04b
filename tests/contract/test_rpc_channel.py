"""Outgoing calls: what is retried and what is not, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from smile import errors
from smile.rpc.channel import ApiKey, build_channel, calling
from smile.rpc.context import deadline_in
from smile.testing import FakeAuthenticator, FakeKeys, serving
from tests.contract.rpc_probe import Probe, ProbeClient, Request, probe_service

pytestmark = pytest.mark.asyncio(loop_scope="session")


@asynccontextmanager
async def connected(probe: Probe, **options: Any) -> AsyncIterator[ProbeClient]:
    keys = FakeKeys()
    async with (
        serving([probe_service(probe)], authenticator=FakeAuthenticator(keys)) as server,
        build_channel(
            server.address, credentials=ApiKey(keys.tenant("acme")), **options
        ) as channel,
    ):
        yield ProbeClient(channel)


async def test_unavailable_is_retried_a_bounded_number_of_times() -> None:
    probe = Probe()
    async with connected(probe) as client:
        probe.unavailable_first = 3
        assert (await client.unary(Request(act="flaky"))).text.startswith("tenant acme ")
        assert probe.calls == 4
        probe.calls, probe.unavailable_first = 0, 100
        with pytest.raises(errors.Unavailable), calling():
            await client.unary(Request(act="flaky"))
        assert probe.calls == 4


async def test_retries_of_two_hops_do_not_multiply() -> None:
    inner = Probe()
    inner.unavailable_first = 100
    async with connected(inner) as behind:
        outer = Probe(following=behind)
        async with connected(outer) as client:
            with pytest.raises(errors.Unavailable, match="a dependency is away"), calling():
                await client.unary(Request(act="hop flaky"))
    assert (inner.calls, outer.calls) == (4, 1)


async def test_a_silent_service_behind_is_not_named_by_its_address() -> None:
    async with build_channel("127.0.0.1:9", credentials=None) as nowhere:
        outer = Probe(following=ProbeClient(nowhere))
        async with connected(outer) as client:
            with pytest.raises(errors.Unavailable) as caught, calling():
                await client.unary(Request(act="hop"))
    assert "127.0.0.1" not in caught.value.message
    assert caught.value.retry_after == 1.0
    assert outer.calls == 1


async def test_other_failures_are_not_retried() -> None:
    probe = Probe()
    async with connected(probe) as client:
        for act in ("crash", "absent", "full"):
            before = probe.calls
            with pytest.raises(errors.SmileError), calling():
                await client.unary(Request(act=act))
            assert probe.calls == before + 1


async def test_a_call_without_a_timeout_gets_the_channels_default() -> None:
    async with connected(Probe(), timeout_s=7.0) as client:
        assert 6 < (await client.unary(Request())).remaining_s < 7.1
        assert (await client.unary(Request(), timeout=3)).remaining_s < 3.1


async def test_what_is_left_of_a_request_bounds_its_calls() -> None:
    async with connected(Probe()) as client:
        with deadline_in(2.0):
            assert (await client.unary(Request(), timeout=60)).remaining_s < 2
            assert (await client.unary(Request(), timeout=1)).remaining_s < 1.1
        with deadline_in(0.01), pytest.raises(errors.DeadlineExceeded), calling():
            await client.unary(Request())


async def test_replies_larger_than_the_client_takes_are_named_as_such() -> None:
    async with connected(Probe(), message_bytes_max=10) as client:
        with pytest.raises(errors.InvalidArgument) as caught, calling():
            await client.unary(Request())
        assert caught.value.reason == "MESSAGE_TOO_LARGE"
        assert caught.value.metadata["limit"] == "10"


async def test_nobody_listening_is_unavailable_and_names_the_address() -> None:
    async with build_channel("127.0.0.1:9", credentials=None) as channel:
        with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:9"), calling():
            await ProbeClient(channel).unary(Request(), timeout=5)
        assert channel.get_state() is not grpc.ChannelConnectivity.READY


async def test_concurrent_calls_keep_their_own_request_ids() -> None:
    async with connected(Probe()) as client:
        replies = await asyncio.gather(*(client.unary(Request()) for _ in range(20)))
        assert len({reply.text for reply in replies}) == 20
