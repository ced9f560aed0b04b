"""`ProcessorService` when things go wrong: bad input, bad modules, a full queue, no time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from safetensors.numpy import save

from services.processor.engine import Engine
from services.processor.scheduling.admission import QueueLimits
from smile import errors
from smile.model import weights
from smile.model.toy import write_toy_backbone
from smile.resources import Classification
from smile.rpc.channel import ApiKey, build_channel
from smile.v1 import processor_pb2, processor_pb2_grpc
from tests.contract.processor_world import World, module_spec, processor_world, random_tensors
from tests.contract.test_processor import check

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "tenants/acme/vplms/good"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(backbone: Path) -> AsyncIterator[World]:
    async with processor_world(backbone) as world:
        world.add("acme", "good", seed=1)
        world.add("rival", "good", pet="lora", head="yes", seed=2)
        yield world


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 -- the state of a thread has no event
            await asyncio.sleep(0.005)


class Device:
    """The engine's `compute`, held until told, and what it was given."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        self._compute = compute
        self.go = threading.Event()
        self.running = threading.Event()
        self.texts = 0

    def __call__(self, prepared: Any) -> Any:
        self.texts += sum(prepared.counts)
        self.running.set()
        assert self.go.wait(20)
        return self._compute(prepared)


@contextlib.contextmanager
def held_device(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device(world.processor.engine.compute)
    handoff = world.processor.pipeline._parts.lanes._handoff  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(handoff, "_in_flight_max", 1)  # what is not on the device is in the queue
        patch.setattr(Engine, "compute", lambda _, prepared: device(prepared))
        try:
            yield device
        finally:
            device.go.set()


async def refused(
    world: World, error: type[errors.SmileError], texts: list[str], **asked: Any
) -> errors.SmileError:
    with pytest.raises(error) as caught:
        await world.infer("acme", asked.pop("name", NAME), texts, **asked)
    assert type(caught.value) is error
    return caught.value


async def test_too_many_texts(world: World) -> None:
    error = await refused(world, errors.TooManyTexts, ["a"] * 10_001)
    assert "10000" in error.message
    assert "10001" in error.message


async def test_no_texts(world: World) -> None:
    assert (await refused(world, errors.InvalidArgument, [])).reason == "TEXTS_MISSING"


async def test_an_empty_text_is_named(world: World) -> None:
    for empty in ("", " \n\t"):
        error = await refused(world, errors.TextEmpty, ["fine", empty])
        assert error.metadata["text"] == "1"


async def test_a_text_of_too_many_characters(world: World) -> None:
    error = await refused(world, errors.TextTooLong, ["a" * 100_001], truncate=True)
    assert "100000 characters, got 100001" in error.message


async def test_a_text_of_too_many_tokens_is_cut_only_when_asked(world: World) -> None:
    long = "red " * 400
    texts = ["fine"] * 300 + [long]  # beyond the first slice
    error = await refused(world, errors.TextTooLong, texts)
    assert error.metadata == {"text": "300", "unit": "tokens", "limit": "128", "value": "402"}
    result = await world.infer("acme", NAME, ["red", long], truncate=True)
    assert [p.truncated for p in result.predictions] == [False, True]
    assert [p.token_count for p in result.predictions] == [3, 128]


async def test_text_that_is_not_utf8(world: World) -> None:
    good = processor_pb2.InferRequest(name=NAME, texts=["abc"]).SerializeToString()
    async with build_channel(
        world.address, credentials=ApiKey(world.keys.tenant("acme"))
    ) as channel:
        call: Any = channel.unary_unary("/smile.v1.ProcessorService/Infer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(good.replace(b"abc", b"\xff\xfe\xfd"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_malformed_names_and_numbers(world: World) -> None:
    for name in ("nonsense", "tenants/acme/vplms/../x", "tenants/acme/vplms/Ü", "x" * 300):
        await refused(world, errors.InvalidName, ["a"], name=name)
    await refused(world, errors.InvalidName, ["a"], name=f"{NAME}/versions/0")
    await refused(world, errors.InvalidArgument, ["a"], top_k=-1)


async def test_a_call_without_a_deadline(world: World) -> None:
    async with grpc.aio.insecure_channel(world.address) as channel:
        stub = processor_pb2_grpc.ProcessorServiceStub(channel)
        bearer = ("authorization", f"Bearer {world.keys.tenant('acme')}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Infer(
                processor_pb2.InferRequest(name=NAME, texts=["a"]),
                metadata=grpc.aio.Metadata(bearer),
            )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_module_of_another_backbone(world: World) -> None:
    spec = replace(module_spec(world.backbone), backbone_digest="0" * 64)
    world.storage.put("tenants/acme/vplms/stranger", spec, b"x")
    error = await refused(
        world, errors.FailedPrecondition, ["a"], name="tenants/acme/vplms/stranger"
    )
    assert error.reason == "BACKBONE_MISMATCH"
    spec = replace(module_spec(world.backbone), backbone="other")
    world.storage.put("tenants/acme/vplms/elsewhere", spec, b"x")
    error = await refused(
        world, errors.FailedPrecondition, ["a"], name="tenants/acme/vplms/elsewhere"
    )
    assert error.reason == "BACKBONE_NOT_SERVED"


def _stored(world: World, change: Callable[[dict[str, Any]], None], pet: str) -> bytes:
    spec = module_spec(world.backbone, pet)
    tensors: dict[str, Any] = dict(random_tensors(spec, world.backbone, 3))
    change(tensors)
    return save(tensors, weights.METADATA)


def _nan(tensors: dict[str, Any]) -> None:
    tensors["head.bias"][0] = np.nan


def _huge(tensors: dict[str, Any]) -> None:
    tensors["head.weight"][:] = 3e38  # finite, and its answers are not


def _shape(tensors: dict[str, Any]) -> None:
    tensors["head.bias"] = tensors["head.bias"][:-1]


def _index(tensors: dict[str, Any]) -> None:
    tensors["layers.1.query.delta.indices"][-1] = 1 << 30


def _many(tensors: dict[str, Any]) -> None:
    tensors["layers.2.query.mask.bits"][:] = 255


@pytest.mark.parametrize(
    ("change", "pet"),
    [
        (_nan, "pfeiffer"),
        (_huge, "pfeiffer"),
        (_shape, "pfeiffer"),
        (_nan, "mask-bert"),
        (_huge, "diff-pruning"),
        (_index, "diff-pruning"),
        (_many, "mask-bert"),
    ],
)
async def test_a_poisoned_module_fails_only_its_own(
    world: World,
    change: Callable[[dict[str, Any]], None],
    pet: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"tenants/acme/vplms/poison-{change.__name__[1:]}-{pet}"
    world.storage.put(name, module_spec(world.backbone, pet), _stored(world, change, pet))
    await world.infer("acme", NAME, ["a"])
    await world.infer("rival", "tenants/rival/vplms/good", ["a"])
    with held_device(world, monkeypatch) as device:
        plug = asyncio.create_task(world.infer("acme", NAME, ["a"]))
        await until(device.running.is_set)
        asked = [
            asyncio.create_task(world.infer("acme", name, ["one"])),
            asyncio.create_task(world.infer("acme", NAME, ["two"])),
            asyncio.create_task(world.infer("rival", "tenants/rival/vplms/good", ["three"])),
        ]
        await asyncio.sleep(0.2)  # all of them stand in line, so they share a batch
        device.go.set()
        bad, *good = await asyncio.gather(*asked, return_exceptions=True)
        await plug
    assert type(bad) is errors.DataCorrupted
    for result, text in zip(good, ("two", "three"), strict=True):
        assert not isinstance(result, BaseException)
        check(world, result, [text])
    if change is _huge:  # it loads, so only computing shows it; the others are not done again
        assert device.texts == 1 + 3


async def test_bytes_that_are_not_the_digests(world: World) -> None:
    version = world.add("acme", "lied", seed=4)
    world.storage.lie(version.name, world.storage.data[version.name][:-1] + b"\0", digest=False)
    error = await refused(world, errors.DataCorrupted, ["a"], name="tenants/acme/vplms/lied")
    assert version.digest in error.message
    loads = world.storage.asked["download"]
    await refused(world, errors.DataCorrupted, ["a"], name="tenants/acme/vplms/lied")
    assert world.storage.asked["download"] == loads, "the failure is remembered"
    good = random_tensors(version.spec, world.backbone, 4)
    world.storage.lie(version.name, weights.encode(good, version.spec), digest=False)
    await asyncio.sleep(0.35)
    assert (await world.infer("acme", version.name, ["a"])).digest == version.digest


async def test_more_bytes_than_declared_are_not_taken(world: World) -> None:
    version = world.add("acme", "endless", seed=5)
    world.storage.lie(version.name, world.storage.data[version.name] * 3, digest=False)
    error = await refused(world, errors.DataCorrupted, ["a"], name="tenants/acme/vplms/endless")
    assert str(version.size_bytes) in error.message


async def test_a_full_queue_refuses_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    admission = world.processor.pipeline._parts.admission
    monkeypatch.setattr(admission, "limits", QueueLimits(10, 10_000, 0.6))
    with held_device(world, monkeypatch) as device:
        first = asyncio.create_task(world.infer("acme", NAME, ["a"] * 6))
        await until(device.running.is_set)
        started = time.monotonic()
        error = await refused(world, errors.Overloaded, ["a"])
        assert time.monotonic() - started < 2
        assert error.reason == "TENANT_QUEUE_FULL"
        assert error.retry_after is not None
        assert error.retry_after > 0
        other = asyncio.create_task(world.infer("rival", "tenants/rival/vplms/good", ["a"] * 4))
        await until(lambda: admission.inside.texts == 10)
        with pytest.raises(errors.Overloaded) as caught:
            await world.infer("third", "tenants/third/vplms/any", ["a"])
        assert caught.value.reason == "QUEUE_FULL"
        error = await refused(world, errors.InvalidArgument, ["a"] * 7)
        assert error.reason == "REQUEST_TOO_LARGE"
        device.go.set()
        await asyncio.gather(first, other)
    assert (admission.inside.texts, admission.inside.tokens) == (0, 0)
    assert world.stats.requests_refused_total >= 2


async def test_a_cancelled_request_frees_the_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.infer("acme", NAME, ["a"])
    with held_device(world, monkeypatch) as device:
        plug = asyncio.create_task(world.infer("acme", NAME, ["a"]))
        await until(device.running.is_set)
        gone = asyncio.create_task(world.infer("acme", NAME, ["never"] * 20))
        await until(lambda: world.stats.queue_texts == 20)
        gone.cancel()
        await until(lambda: world.stats.queue_texts == 0)
        device.go.set()
        await plug
        await asyncio.sleep(0.05)
        assert device.texts == 1, "what nobody waits for is not computed"
    assert world.processor.pipeline._parts.admission.inside.texts == 0


async def test_a_deadline_that_passes_in_the_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.infer("acme", NAME, ["a"])
    with held_device(world, monkeypatch) as device:
        plug = asyncio.create_task(world.infer("acme", NAME, ["a"]))
        await until(device.running.is_set)
        await refused(world, errors.DeadlineExceeded, ["late"] * 5, timeout_s=0.3)
        await until(lambda: world.stats.queue_texts == 0)
        device.go.set()
        await plug
        await asyncio.sleep(0.05)
        assert device.texts == 1


@pytest.mark.parametrize("step", ["prepare", "compute"])
async def test_the_device_survives_anything(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("secret of another tenant")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, step, explode)
        error = await refused(world, errors.Internal, ["a"])
    assert "secret" not in error.message
    answer = (await world.infer("acme", NAME, ["a"])).predictions[0].result
    assert isinstance(answer, Classification)


async def test_a_module_storage_lost_is_that_vplms_alone(world: World) -> None:
    world.add("acme", "lost", seed=6)
    await world.infer("acme", NAME, ["a"])
    world.storage.gate = asyncio.Event()
    waiting = asyncio.create_task(world.infer("acme", "tenants/acme/vplms/lost", ["a"]))
    await asyncio.sleep(0.1)
    assert (await world.infer("acme", NAME, ["a"])).timings.load_s == 0
    waiting.cancel()
    world.storage.gate.set()
    world.storage.gate = None


async def test_a_working_set_larger_than_memory_makes_progress(backbone: Path) -> None:
    async with processor_world(backbone) as world:
        for number in range(6):
            world.add("acme", f"v{number}", seed=number)
        await world.infer("acme", "tenants/acme/vplms/v0", ["a"])
        residency = world.processor.pipeline._parts.dispatch._residency
        host = residency.host.space
        host.bytes_max = 2 * host.nbytes + 1
        asked = [
            world.infer("acme", f"tenants/acme/vplms/v{turn % 6}", ["a", "b"]) for turn in range(30)
        ]
        await asyncio.gather(*asked)
        assert world.stats.module_evictions_total >= 4
        assert world.stats.modules_bytes <= world.stats.modules_bytes_max


async def test_stats_are_for_tenants_and_the_operator(world: World) -> None:
    for key in (world.keys.tenant("acme"), world.keys.operator):
        async with build_channel(world.address, credentials=ApiKey(key)) as channel:
            stub = processor_pb2_grpc.ProcessorServiceStub(channel)
            stats = await stub.GetStats(processor_pb2.GetStatsRequest(), timeout=5)
            assert list(stats.backbones) == ["backbones/toy"]
            assert stats.batches_total > 0
            assert stats.batch_texts_mean >= 1


async def test_stopping_refuses_and_fails_what_is_queued(
    backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processor_world(backbone) as world:
        world.add("acme", "good", seed=1)
        await world.infer("acme", NAME, ["a"])
        with held_device(world, monkeypatch) as device:
            inside = asyncio.create_task(world.infer("acme", NAME, ["a"]))
            await until(device.running.is_set)
            queued = asyncio.create_task(world.infer("acme", NAME, ["b"]))
            await until(lambda: world.stats.queue_texts == 1)
            closing = asyncio.create_task(world.processor.pipeline.close())
            assert isinstance(
                (await asyncio.gather(queued, return_exceptions=True))[0], errors.Unavailable
            )
            device.go.set()
            await closing
            await inside
        await refused(world, errors.Unavailable, ["a"])


async def test_a_storage_that_hangs_is_unavailable(world: World) -> None:
    world.storage.hangs = True
    started = time.monotonic()
    try:
        error = await refused(world, errors.Unavailable, ["a"], name="tenants/acme/vplms/slow")
    finally:
        world.storage.hangs = False
    assert "in time" in error.message
    assert time.monotonic() - started < 15
