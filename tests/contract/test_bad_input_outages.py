"""What the platform stands on goes away: at the start, amid a request; and it comes back."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

import smile
from smile.errors import FailedPrecondition, SmileError, Unavailable
from smile.rpc.keys import KeyKind, new_key
from smile.store.objects import open_store
from smile.v1 import trainer_pb2
from tests.contract.every_rpc import REQUESTS, TENANT_METHODS, create_job, new_id
from tests.contract.harmless import TEXT, Scene, scene, told
from tests.contract.platform_world import platform_world, until_ready

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Scene]:
    async with scene() as made:
        yield made


async def health(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        return int(answer.status)


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
STORED = {
    name
    for name in TENANT_METHODS
    if name.startswith(("StorageService", "DatasetService", "IdentityService"))
}


@pytest.mark.parametrize("method", sorted(STORED))
async def test_the_store_fails_at_any_moment_of_a_request(place: Scene, method: str) -> None:
    """Each says UNAVAILABLE, and the same request again, once the store is back, succeeds once."""
    store, acme = place.platform.store, place.acme
    request = REQUESTS[method](acme, place.weights)
    store.break_down(after=1 << 30)
    quiet = place.platform.readiness["storage"]
    asked = 0
    for after in range(60):
        store.break_down(after=after)
        outcome = await place.call(method, request)
        store.recover()
        asked += 1
        if outcome.code is grpc.StatusCode.OK:
            break
        assert (outcome.code, outcome.reason) == (UNAVAILABLE, "STORE_UNAVAILABLE"), outcome
    else:
        pytest.fail("the request does not end")
    assert asked > 1, "it uses the store"
    again = await place.call(method, request)
    assert again.code in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND), again
    await until_ready(quiet)
    assert (await place.neighbour.infer("topic", TEXT)).digest == place.golden.digest


async def test_the_store_gone_in_mid_flight(place: Scene) -> None:
    """Storage is unready and alive; known vPLMs go on answering; afterwards all is as it was."""
    platform = place.platform
    await place.client.create_vplm("unasked", backbone="toy", pet=smile.BitFit(), labels=["a", "b"])
    before = await platform.store.snapshot()
    address = platform.servers["storage"].address
    platform.store.break_down()
    try:
        await until_ready(platform.readiness["storage"], ready=False)
        assert await health(address) == NOT_SERVING
        assert await health(address, "liveness") == SERVING
        await asyncio.sleep(0.25)  # longer than the processor remembers aliases
        answers = await asyncio.gather(*(place.neighbour.infer("topic", TEXT) for _ in range(20)))
        assert {answer.digest for answer in answers} == {place.golden.digest}
        with pytest.raises(smile.Unavailable) as caught:
            await place.client.infer("unasked", "never asked before", timeout=3)
        told(caught.value)
        outcome = await place.call("StorageService.ResolveAlias", b"")
        assert outcome.code is UNAVAILABLE, "storage remembers no keys"
    finally:
        platform.store.recover()
    await until_ready(platform.readiness["storage"])
    assert await health(address) == SERVING
    assert await platform.store.snapshot() == before
    assert (await place.client.infer("unasked", TEXT)).predictions
    await place.client.delete_vplm("unasked")


async def test_a_store_that_forbids_writing(place: Scene) -> None:
    """Reading goes on; writing says who can help."""
    fault = FailedPrecondition("/data: permission denied", reason="STORE_ACCESS_DENIED")
    platform = place.platform
    async with place.harmless():
        writes = ("put_if_absent", "compare_and_swap", "put_stream")
        originals = {name: getattr(platform.store, name) for name in writes}

        async def forbidden(*_: object) -> None:
            raise fault

        for name in writes:
            setattr(platform.store, name, forbidden)
        try:
            for attempt in (
                place.client.upload_dataset("new", [{"text": "a", "label": "b"}]),
                place.client.create_vplm(
                    "new", backbone="toy", pet=smile.BitFit(), labels=["a", "b"]
                ),
                place.client.train("topic", "rows"),
                place.client.create_key("new"),
            ):
                with pytest.raises(smile.FailedPrecondition) as caught:
                    await attempt
                assert caught.value.reason == "STORE_ACCESS_DENIED"
            assert (await place.client.vplm("topic")).latest_version >= 2
        finally:
            for name, original in originals.items():
                setattr(platform.store, name, original)


async def test_redis_killed_and_started_again_without_its_memory(place: Scene) -> None:
    """Accepted jobs are told of as recorded, wait, and are done once it is back."""
    platform, client = place.platform, place.client
    assert platform.jobs is not None
    for asker in (client, place.neighbour):
        async for job in asker.jobs():
            await asker.cancel(job)
    job = await client.train("topic", "rows", epochs=1, promote_alias=None)
    versions = (await client.vplm("topic")).latest_version
    address = platform.servers["trainer"].address
    platform.redis.kill()
    async with place.harmless():
        await until_ready(platform.readiness["trainer"], ready=False)
        assert await health(address) == NOT_SERVING
        assert await health(address, "liveness") == SERVING
        assert (await client.job(job)).state is smile.JobState.QUEUED
        assert job.name in [known.name async for known in client.jobs()]
        new = create_job(place.acme)
        new.validate_only = False
        cancelling = trainer_pb2.CancelTrainingJobRequest(name=job.name, request_id=new_id())
        for method, request in (("CreateTrainingJob", new), ("CancelTrainingJob", cancelling)):
            began = time.monotonic()
            outcome = await place.call(f"TrainerService.{method}", request)
            assert (outcome.code, outcome.reason) == (UNAVAILABLE, "REDIS_AWAY")
            assert time.monotonic() - began < 1.0
            assert outcome.error is not None
            told(outcome.error, "Redis")
    platform.redis.start()
    await until_ready(platform.readiness["trainer"])
    assert await platform.jobs.reconcile() == 1
    async with platform.worker():
        done = await client.wait(job)
    assert done.state is smile.JobState.SUCCEEDED
    assert (await client.vplm("topic")).latest_version == versions + 1
    assert await platform.jobs.reconcile() == 0


async def test_redis_killed_while_a_job_runs(place: Scene) -> None:
    platform, client = place.platform, place.client
    assert platform.jobs is not None
    versions = (await client.vplm("second")).latest_version
    job = await client.train("second", "rows", epochs=300, promote_alias=None)
    async with platform.worker():
        async with asyncio.timeout(20):
            async for event in client.watch(job):
                if event.metrics:
                    break
        platform.redis.kill()
        assert (await place.neighbour.infer("topic", TEXT)).digest == place.golden.digest
        platform.redis.start()
        await until_ready(platform.readiness["trainer"])
        await platform.jobs.reconcile()
        done = await client.wait(job, timeout=60)
    assert done.state is smile.JobState.SUCCEEDED
    assert (await client.vplm("second")).latest_version == versions + 1, "published once"


async def test_a_directory_that_is_lost_and_found(tmp_path: Path) -> None:
    """A real directory, moved away and back under a running platform."""
    root, elsewhere = tmp_path / "data", tmp_path / "moved"
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(
            platform_world("acme", store=open_store(f"file://{root}"))
        )
        async with platform.client("acme") as client:
            await client.create_vplm("a", backbone="toy", pet=smile.BitFit(), labels=["a", "b"])
            root.rename(elsewhere)
            root.write_bytes(b"a file in its place")
            with pytest.raises(SmileError) as caught:
                await client.create_vplm(
                    "b", backbone="toy", pet=smile.BitFit(), labels=["a", "b"], timeout=3
                )
            assert caught.value.reason in ("STORE_ACCESS_DENIED", "STORE_UNAVAILABLE")
            await until_ready(platform.readiness["storage"], ready=False)
            root.unlink()
            elsewhere.rename(root)
            await until_ready(platform.readiness["storage"])
            assert [vplm.name async for vplm in client.vplms()] == ["tenants/acme/vplms/a"]
            await client.create_vplm("b", backbone="toy", pet=smile.BitFit(), labels=["a", "b"])


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "SMILE_SERVICE_KEY": new_key(KeyKind.SERVICE).text,
        "SMILE_STORAGE_URL": f"file://{tmp_path}/data",
        "SMILE_BACKBONES": "toy=dir:/nowhere/toy",
        "SMILE_REDIS_URL": "redis://127.0.0.1:1/0",
        "SMILE_STORAGE_ADDRESS": "127.0.0.1:1",
        "OMP_NUM_THREADS": "1",
        **changes,
    }


async def started(service: str, settings: dict[str, str]) -> tuple[int, str]:
    """Exit code and what a service said on its way."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"services.{service}"),
        env=settings,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, said.decode()


SERVICES = ("storage", "creator", "trainer", "processor")


async def test_a_port_in_use_and_settings_that_make_no_sense(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        in_use = [
            started(name, environment(tmp_path, **{f"SMILE_{name.upper()}_PORT": port}))
            for name in SERVICES
        ]
        broken = environment(tmp_path, SMILE_SERVICE_KEY="hunter2", SMILE_STORAGE_PORT="70000")
        *refused, (code, said) = await asyncio.gather(*in_use, started("storage", broken))
    assert code == 78 and "SMILE_STORAGE_PORT" in said and "SMILE_SERVICE_KEY" in said, said
    assert "hunter2" not in said
    for code, said in refused:
        assert (code, said.count("\n")) == (69, 1), said
        assert f"127.0.0.1:{port}" in said and "in use" in said


async def test_everything_gone_at_the_start(tmp_path: Path) -> None:
    """The store's path leads through a file, nobody listens where storage and Redis should be:
    services are alive and unready, answer UNAVAILABLE, and end in order."""
    (tmp_path / "file").write_bytes(b"no folder")
    ports: dict[str, int] = {}
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        for name, probe in zip(SERVICES, (first, second, third), strict=False):
            probe.bind(("127.0.0.1", 0))
            ports[name] = probe.getsockname()[1]
    processes = []
    try:
        for name, port in ports.items():
            settings = environment(tmp_path, **{f"SMILE_{name.upper()}_PORT": str(port)})
            settings["SMILE_TRAINER_WORKERS"] = "0"
            settings["SMILE_STORAGE_URL"] = f"file://{tmp_path}/file/below"
            processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", f"services.{name}"),
                    env=settings,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
            )
        for name, port in ports.items():
            async with asyncio.timeout(60):
                while True:
                    try:
                        alive = await health(f"127.0.0.1:{port}", "liveness")
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.1)
                        continue
                    break
            assert alive == SERVING, name
            assert await health(f"127.0.0.1:{port}") == NOT_SERVING, name
        endpoints = ",".join(f"{name}=127.0.0.1:{port}" for name, port in ports.items())
        key = f"smile_acme_k{'a' * 15}_{'x' * 43}"
        async with smile.AsyncClient(key, endpoints=endpoints) as client:
            with pytest.raises(Unavailable):
                await client.backbones(timeout=3)
            with pytest.raises(Unavailable):
                await anext(client.jobs(timeout=3))
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
        codes = await asyncio.gather(*(process.wait() for process in processes))
    assert codes == [0] * len(processes), "and they end in order"
