"""Renting processors over real connections: terms, states, counters, bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from smile import errors
from smile.client.client import AsyncClient
from smile.model.toy import write_toy_backbone
from smile.names import VplmName
from smile.processors import Processor, ProcessorCounters, ProcessorState, ProcessorTerms
from tests.contract.processor_world import World, processor_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "a good day for the team"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(backbone: Path) -> AsyncIterator[World]:
    async with processor_world(backbone) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(world: World) -> AsyncIterator[AsyncClient]:
    async with world.client("acme") as client:
        yield client


async def until(client: AsyncClient, vplm: str, state: ProcessorState) -> Processor:
    async with asyncio.timeout(10):
        while True:
            if (found := await client.processor(vplm)).state is state:
                return found
            await asyncio.sleep(0.05)


async def test_renting_warms_answers_heat_releasing_cools(
    world: World, client: AsyncClient
) -> None:
    version = world.add("acme", "life", seed=1)
    before = datetime.now(UTC)
    rented = await client.rent("life", weight=2, wait=True)
    assert rented.name == "tenants/acme/processors/life"
    assert (rented.vplm, rented.terms) == ("tenants/acme/vplms/life", ProcessorTerms(2))
    assert rented.state in (ProcessorState.WARM, ProcessorState.HOT)
    assert rented.create_time is not None and rented.last_used_time is None
    assert rented.create_time - before < timedelta(seconds=5)
    downloads = world.storage.asked["download"]
    result = await client.infer("life", [TEXT, TEXT])
    assert (result.version, result.timings.load_s) == (version.name, 0), "it was there"
    assert world.storage.asked["download"] == downloads
    used = await client.processor("life")
    assert used.state is ProcessorState.HOT
    assert used.counters == ProcessorCounters(requests=1, texts=2, module_hits=1)
    assert used.last_used_time is not None
    assert abs(used.last_used_time - datetime.now(UTC)) < timedelta(seconds=5)
    await client.release("life")
    for call in (client.processor("life"), client.release("life")):
        with pytest.raises(errors.NotFound, match="tenants/acme/processors/life"):
            await call
    again = await client.infer("life", TEXT)
    assert again.timings.load_s > 0, "its memory was given back, and it answers all the same"


async def test_renting_again_changes_nothing_but_the_terms(
    world: World, client: AsyncClient
) -> None:
    world.add("acme", "again", seed=2)
    first = await client.rent("again", wait=True, weight=0.5)
    assert await client.rent("again", wait=True, weight=0.5) == first
    await client.infer("again", TEXT)
    terms = ProcessorTerms(3, 2, 50, 100, False, 60)
    changed = await client.rent(
        "again", weight=3, concurrency_max=2, texts_per_s=50, burst_texts=100, idle_s=60
    )
    assert changed.terms == terms and changed.counters.requests == 1
    assert changed.create_time == first.create_time
    assert (await client.processor("tenants/-/vplms/again")).terms == terms


async def test_renting_returns_at_once_and_warms_beside(world: World, client: AsyncClient) -> None:
    world.add("acme", "later", seed=3)
    world.storage.gate = asyncio.Event()
    try:
        assert (await client.rent("later")).state is ProcessorState.COLD
    finally:
        world.storage.gate.set()
        world.storage.gate = None
    await until(client, "later", ProcessorState.WARM)


async def test_faster_than_rented_is_refused(world: World, client: AsyncClient) -> None:
    world.add("acme", "slow", seed=4)
    await client.rent("slow", texts_per_s=0.001, burst_texts=3, wait=True)
    await client.infer("slow", [TEXT] * 2)
    with pytest.raises(errors.Overloaded, match="3 at once") as caught:
        await client.infer("slow", [TEXT] * 2)
    assert caught.value.reason == "RATE_LIMITED"
    assert caught.value.retry_after is not None and caught.value.retry_after > 1
    await client.infer("slow", TEXT)
    world.add("acme", "free", seed=5)
    result = await client.infer_fanout(TEXT, ["slow", "free"])
    slow, free = result.entries
    assert isinstance(slow, errors.Overloaded) and slow.reason == "RATE_LIMITED"
    assert not isinstance(free, errors.SmileError), "only its own entry is refused"
    assert (await client.processor("slow")).counters == ProcessorCounters(
        requests=4, texts=3, refused=2, module_hits=2
    )
    await client.rent("slow", wait=True)
    await client.infer("slow", [TEXT] * 5)


async def test_concurrency_is_kept(world: World, client: AsyncClient) -> None:
    """Requests beyond it wait, and all are answered."""
    world.add("acme", "narrow", seed=6)
    await client.rent("narrow", concurrency_max=1, wait=True)
    results = await asyncio.gather(*(client.infer("narrow", TEXT) for _ in range(12)))
    assert {result.timings.batch_texts for result in results} == {1}, "one at a time"
    await client.rent("narrow", wait=True)
    results = await asyncio.gather(*(client.infer("narrow", TEXT) for _ in range(12)))
    assert max(result.timings.batch_texts for result in results) > 1


async def test_errors_are_counted(world: World, client: AsyncClient) -> None:
    world.add("acme", "wrong", seed=7)
    await client.rent("wrong", wait=True)
    with pytest.raises(errors.TextTooLong):
        await client.infer("wrong", "war " * 5000)
    fanned = await client.infer_fanout(TEXT, ["wrong", "absent"])
    assert not isinstance(fanned.entries[0], errors.SmileError)
    counters = (await client.processor("wrong")).counters
    assert (counters.requests, counters.texts, counters.errors) == (2, 1, 1)


async def test_idle_ones_go_cold_and_come_back(world: World, client: AsyncClient) -> None:
    world.add("acme", "idle", seed=8)
    world.add("acme", "pinned", seed=9)
    await client.rent("idle", idle_s=1, wait=True)
    pinned = await client.rent("pinned", idle_s=1, pinned=True, wait=True)
    assert pinned.state is ProcessorState.HOT
    await client.infer("idle", TEXT)
    await until(client, "idle", ProcessorState.COLD)
    assert (await client.processor("pinned")).state is ProcessorState.HOT
    assert (await client.infer("idle", TEXT)).timings.load_s > 0
    counters = (await client.processor("idle")).counters
    assert (counters.module_hits, counters.module_loads) == (1, 1)
    await until(client, "idle", ProcessorState.COLD)


async def test_what_is_pinned_follows_its_alias(world: World, client: AsyncClient) -> None:
    world.add("acme", "moved", seed=10)
    await client.rent("moved", pinned=True, wait=True)
    second = world.add("acme", "moved", seed=11)
    name = VplmName.parse("tenants/acme/vplms/moved")
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.4)
            rental = world.processor.renting._estate.rentals.of(name)
            held = [key.digest for key in rental.keys] if rental else []
            if held[-1:] == [second.digest]:
                break
    assert (await client.infer("moved", TEXT)).timings.load_s == 0, "it was brought in beforehand"


async def test_lists_are_paged_and_ones_own(world: World, client: AsyncClient) -> None:
    names = [f"list-{index}" for index in range(7)]
    for name in names:
        world.add("acme", name, pet="lora", seed=20)
        await client.rent(name)
    world.add("rival", "other", seed=21)
    async with world.client("rival") as rival:
        await rival.rent("other")
        assert [each.vplm async for each in rival.processors()] == ["tenants/rival/vplms/other"]
        with pytest.raises(errors.NotFound):
            await rival.rent("tenants/acme/vplms/list-0")
        with pytest.raises(errors.NotFound):
            await rival.release("tenants/acme/vplms/list-0")
    found = [each.vplm.rpartition("/")[2] async for each in client.processors(page_size=2)]
    assert found == sorted(found) and set(names) <= set(found) and "other" not in found


async def test_what_cannot_be_rented(world: World, client: AsyncClient) -> None:
    world.add("acme", "plain", seed=22)
    with pytest.raises(errors.NotFound, match="tenants/acme/vplms/absent"):
        await client.rent("absent")
    with pytest.raises(errors.NotFound):
        await client.processor("absent")
    for terms in (
        {"weight": 0.05},
        {"weight": 11},
        {"weight": float("nan")},
        {"concurrency_max": -1},
        {"texts_per_s": -1},
        {"texts_per_s": float("inf")},
        {"burst_texts": 5},
        {"idle_s": 0.5},
        {"idle_s": 1e9},
    ):
        with pytest.raises(errors.InvalidArgument):
            await client.rent("plain", **terms)
    with pytest.raises(TypeError, match="pined"):
        await client.rent("plain", pined=True)  # type: ignore[call-arg]
    rotten = world.add("acme", "rotten", seed=23)
    world.storage.lie(rotten.name, b"rot", digest=False)
    with pytest.raises(errors.DataCorrupted):
        await client.rent("rotten", wait=True)


async def test_bounds_and_flat_registration(backbone: Path) -> None:
    async with processor_world(backbone, rentals_max=60, rentals_tenant_max=50) as world:
        for index in range(51):
            world.add("acme", f"v{index}", seed=1)
        world.add("rival", "v", seed=1)
        async with world.client("acme") as client, world.client("rival") as rival:
            for index in range(50):
                await client.rent(f"v{index}")
            with pytest.raises(errors.QuotaExceeded, match="at most 50"):
                await client.rent("v50")
            await client.rent("v49", weight=2)
            await rival.rent("v")
            await client.release("v0")
            await client.rent("v50")


async def test_nothing_is_rented_after_a_restart(backbone: Path) -> None:
    for _ in range(2):
        async with processor_world(backbone) as world, world.client("acme") as client:
            world.add("acme", "fresh", seed=1)
            assert [each async for each in client.processors()] == []
            started = time.monotonic()
            await client.rent("fresh")
            assert time.monotonic() - started < 5
