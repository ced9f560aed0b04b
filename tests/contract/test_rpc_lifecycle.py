"""Starting, being ready, draining and stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from smile import errors
from smile.rpc.channel import ApiKey, build_channel, calling
from smile.rpc.server import Readiness, RunningServer
from smile.testing import FakeAuthenticator, FakeKeys, serving, settings
from tests.contract.rpc_probe import PROBE, Probe, ProbeClient, Request, probe_service

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
IN_LOOP = pytest.mark.asyncio(loop_scope="session")
ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def probing(
    probe: Probe, readiness: Readiness, drain_s: float = 5.0
) -> AsyncIterator[tuple[RunningServer, ProbeClient, health_pb2_grpc.HealthStub]]:
    keys = FakeKeys()
    async with (
        serving(
            [probe_service(probe)],
            authenticator=FakeAuthenticator(keys),
            server_settings=settings(keys, drain_s=drain_s),
            readiness=readiness,
        ) as server,
        build_channel(server.address, credentials=ApiKey(keys.tenant("acme"))) as channel,
        grpc.aio.insecure_channel(server.address) as bare,
    ):
        yield server, ProbeClient(channel), health_pb2_grpc.HealthStub(bare)


async def health(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


@IN_LOOP
async def test_health_follows_the_checks_and_liveness_does_not() -> None:
    readiness = Readiness("store", "redis")
    async with probing(Probe(), readiness) as (_, _, stub):
        steps: list[tuple[int, Callable[[], None]]] = [
            (NOT_SERVING, lambda: readiness.set_ready("store")),
            (NOT_SERVING, lambda: readiness.set_ready("redis")),
            (SERVING, lambda: readiness.set_unready("redis", "connection refused")),
            (NOT_SERVING, lambda: readiness.set_ready("redis")),
            (SERVING, lambda: None),
        ]
        for expected, change in steps:
            assert await health(stub, "") == expected
            assert await health(stub, PROBE) == expected
            assert await health(stub, "liveness") == SERVING
            change()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(stub, "nobody.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@IN_LOOP
async def test_watched_checks_follow_their_probes() -> None:
    readiness = Readiness()
    tried = asyncio.Event()
    fault: list[Exception] = [ConnectionError("no route to redis")]

    async def ping() -> None:
        tried.set()
        if fault:
            raise fault[0]

    readiness.watch("redis", ping, every_s=0.01)
    async with probing(Probe(), readiness) as (_, _, stub):
        await asyncio.wait_for(tried.wait(), 5)
        await asyncio.sleep(0)
        assert readiness.unready == {"redis": "no route to redis"}
        assert await health(stub, "") == NOT_SERVING
        fault.clear()
        watching = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        async for response in watching:
            if response.status == SERVING:
                break
        watching.cancel()


@IN_LOOP
async def test_stopping_lets_calls_inside_end_and_takes_no_more() -> None:
    probe, readiness = Probe(), Readiness()
    async with probing(probe, readiness) as (server, client, stub):
        watching = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watching.read()).status == SERVING
        inside = asyncio.ensure_future(client.unary(Request(act="wait")))
        await probe.inside.wait()
        stopping = asyncio.create_task(server.stop())
        assert (await watching.read()).status == NOT_SERVING
        assert await watching.read() is grpc.aio.EOF, "a watch must not hold up the drain"
        with pytest.raises(errors.Unavailable), calling():
            await client.unary(Request(), timeout=10)
        assert not stopping.done()
        probe.release.set()
        assert (await inside).text == "released"
        await asyncio.wait_for(stopping, 2)


@IN_LOOP
async def test_calls_that_outlast_the_grace_are_cut_as_unavailable() -> None:
    probe = Probe()
    async with probing(probe, Readiness(), drain_s=0.1) as (server, client, _):
        inside = asyncio.ensure_future(client.unary(Request(act="wait")))
        await probe.inside.wait()
        await server.stop()
        with pytest.raises(errors.Unavailable), calling():
            await inside
        await asyncio.wait_for(probe.ended.wait(), 2)


@IN_LOOP
async def test_a_server_that_comes_back_is_found_again() -> None:
    keys, probe = FakeKeys(), Probe()
    async with serving([probe_service(probe)], authenticator=FakeAuthenticator(keys)) as first:
        port = first.port
    credentials = ApiKey(keys.tenant("acme"))
    async with build_channel(f"127.0.0.1:{port}", credentials=credentials) as channel:
        client = ProbeClient(channel)
        with pytest.raises(errors.Unavailable), calling():
            await client.unary(Request(), timeout=10)
        waiting = asyncio.ensure_future(client.unary(Request(), timeout=20, wait_for_ready=True))
        async with serving(
            [probe_service(probe)],
            authenticator=FakeAuthenticator(keys),
            server_settings=settings(keys, port=port),
        ):
            assert (await waiting).text.startswith("tenant acme ")


MAIN = """
import asyncio, contextlib, sys
from smile.config import ServiceSettings, load
from smile.logs import configure
from smile.rpc.server import Readiness, run, serve
from smile.testing import FakeAuthenticator, FakeKeys
from tests.contract.rpc_probe import Probe, probe_service

@contextlib.asynccontextmanager
async def lifespan():
    sys.stdout.write("entered\\n"); sys.stdout.flush()
    yield
    sys.stdout.write("left\\n"); sys.stdout.flush()

async def main(settings):
    await serve([probe_service(Probe())], settings=settings,
        authenticator=FakeAuthenticator(FakeKeys()), readiness=Readiness(), lifespan=lifespan())

settings = load(ServiceSettings)
configure("probe", settings.log_level, settings.log_format)
run(main(settings))
"""


def start(**changes: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "SMILE_PORT": "0",
        "SMILE_SERVICE_KEY": FakeKeys().service,
        **changes,
    }
    return subprocess.Popen(
        [sys.executable, "-c", MAIN],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order(number: signal.Signals) -> None:
    with start() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "entered\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "left\n"), err
    assert "Traceback" not in err


@IN_LOOP
async def test_a_port_in_use_ends_the_process_with_69_and_one_sentence() -> None:
    async with probing(Probe(), Readiness()) as (server, _, _):
        process = start(SMILE_PORT=str(server.port))
        out, err = await asyncio.to_thread(process.communicate, timeout=20)
    assert (process.returncode, out) == (69, "")
    assert err.startswith(f"cannot listen on 127.0.0.1:{server.port}: ")
    assert len(err.splitlines()) == 1, err


def test_wrong_settings_end_the_process_with_78_and_name_them_all() -> None:
    with start(SMILE_PORT="eighty", SMILE_LOG_LEVEL="loud", SMILE_SERVICE_KEY="hunter2") as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (78, "")
    for name in ("SMILE_PORT='eighty'", "SMILE_LOG_LEVEL='loud'", "SMILE_SERVICE_KEY="):
        assert name in err
    assert "hunter2" not in err
