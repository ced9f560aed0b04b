"""Loading, moving, splitting, unloading, renting, evicting, creating again and asking, all at once:
no reply ever comes from the wrong version, and nothing is left behind.

Whatever is decided is drawn from a seed; which of two things comes first is up to the machine, so
a failure's history is told with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast

import pytest

from services.processor.resolver import PATIENCE_S
from smile.client.client import AsyncClient
from smile.errors import NotFound, Overloaded, SmileError
from smile.model.toy import write_toy_backbone
from smile.resources import FanoutAnswer, InferResult, Prediction
from tests.contract.processor_world import World, processor_world
from tests.contract.race_world import History, Oracle
from tests.contract.test_processor import check_one

pytestmark = pytest.mark.asyncio

SEEDS = (1, 2, 3, 4)
FEED_SEEDS = (5, 6, 7)
FEED_DOUBT_S = 0.02  # storage is changed in no time
RUN_S = 3.0
TTL_S = 0.1
SLACK_S = 0.4  # a busy machine's; one that stood still for longer proves nothing
ATTEMPTS = 5
PATIENT_S = 30.0
TENANTS = ("acme", "rival")
IDS = [f"v{number}" for number in range(5)]
MODULES = 28  # of each tenant
MEMORY_MODULES = 2.5  # of the largest kind
TEXTS = (
    "money",
    "the star of the team",
    "a new film about war, and a long one at that: it has not one good song in it",
    "Paris and London are far from home.",
)
CHANGES = ("put", "put", "move", "move", "split", "whole", "delete", "replace", "replace")


@dataclass(frozen=True)
class Reply:
    """What came of asking one vPLM one thing."""

    vplm: str
    version: str | None
    start: float
    end: float
    texts: tuple[str, ...]
    answer: InferResult | FanoutAnswer | SmileError

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        if isinstance(self.answer, InferResult):
            return self.answer.predictions
        assert isinstance(self.answer, FanoutAnswer)
        return (self.answer.prediction,)


@dataclass
class Race:
    """One run."""

    seed: int
    world: World
    history: History
    clients: dict[str, AsyncClient]
    until: float
    replies: list[Reply] = field(default_factory=list)
    rents: Counter[str] = field(default_factory=Counter)
    stall_s: float = 0.0

    def random(self, actor: str) -> Random:
        return Random(f"{self.seed} {actor}")

    async def repeat(self, actor: str, act: Callable[[Random], Awaitable[None]], s: float) -> None:
        """Act again and again, about `s` apart, until the time is over."""
        random = self.random(actor)
        while time.monotonic() < self.until:
            await act(random)
            await asyncio.sleep(random.uniform(0, 2 * s))

    async def change(self, random: Random) -> None:
        vplm = _vplm(random.choice(TENANTS), random.choice(IDS))
        change = random.choice(CHANGES)
        self.history.change(vplm, change)
        if change == "delete" and random.random() < 0.7:  # soon there again
            await asyncio.sleep(random.uniform(0, 0.1))
            self.history.change(vplm, "put")

    async def infer(self, random: Random) -> None:
        tenant = random.choice(TENANTS)
        vplm, key = _vplm(tenant, random.choice(IDS)), f"k{random.randrange(8)}"
        texts = random.choices(TEXTS, k=random.randint(1, 3))
        version = None
        if random.random() < 0.3:
            version = f"{vplm}/versions/{random.randint(1, 3)}"
        start = time.monotonic()
        answer: InferResult | SmileError
        try:
            answer = await self.clients[tenant].infer(
                version or vplm, texts, routing_key=key, timeout=PATIENT_S
            )
        except SmileError as error:
            answer = error
        end = time.monotonic()
        self.replies.append(Reply(vplm, version, start, end, tuple(texts), answer))

    async def infer_fanout(self, random: Random) -> None:
        tenant, text = random.choice(TENANTS), random.choice(TEXTS)
        vplms = [_vplm(tenant, one) for one in random.choices(IDS, k=random.randint(2, 7))]
        start = time.monotonic()
        result = await self.clients[tenant].infer_fanout(text, vplms, timeout=PATIENT_S)
        end = time.monotonic()
        assert len(result.entries) == len(vplms)
        for vplm, entry in zip(vplms, result.entries, strict=True):
            self.replies.append(Reply(vplm, None, start, end, (text,), entry))

    async def rent(self, random: Random) -> None:
        """Rent, pinned now and then, or give back."""
        tenant, vplm = random.choice(TENANTS), random.choice(IDS)
        client = self.clients[tenant]
        try:
            if random.random() < 0.4:
                await client.release(vplm)
                self.rents["released"] += 1
                return
            pinned, wait = random.random() < 0.4, random.random() < 0.5
            await client.rent(vplm, pinned=pinned, wait=wait, timeout=PATIENT_S)
            self.rents["rented"] += 1
        except NotFound:
            self.rents["absent"] += 1
        except Overloaded as error:
            assert error.reason == "PINNED_SHARE_FULL"
            self.rents["full"] += 1

    async def sweep(self, random: Random) -> None:
        self.world.processor.pipeline.demand.sweep(random.choice((0.0, 0.05)))

    async def watch(self) -> None:
        """Notice for how long nothing ran at all."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            self.stall_s = max(self.stall_s, now - before)
            before = now

    def blame(self, reply: Reply, what: str) -> str:
        """A failure, for people."""
        answer = reply.answer
        if not isinstance(answer, SmileError):
            told = f"{answer.version} {answer.digest[:8]}"
        else:
            told = f"{answer!r:.600}"
        return (
            f"seed {self.seed}: {what}\nasked {reply.version or reply.vplm} for "
            f"{reply.end - reply.start:.3f} s: {told}\n"
            f"{self.history.tail(reply.vplm, reply.end)}"
        )


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def shared_oracle() -> dict[str, Oracle]:
    return {}


@pytest.mark.parametrize(
    ("seed", "feed_doubt_s"),
    [*((seed, None) for seed in SEEDS), *((seed, FEED_DOUBT_S) for seed in FEED_SEEDS)],
)
async def test_no_reply_comes_from_the_wrong_version(
    backbone: Path, shared_oracle: dict[str, Oracle], seed: int, feed_doubt_s: float | None
) -> None:
    stalls = []
    for _ in range(ATTEMPTS):
        stalls.append(await _race(backbone, shared_oracle, seed, feed_doubt_s))
        if stalls[-1] <= SLACK_S:
            return
    pytest.fail(f"the machine stood still for {stalls} s, {SLACK_S} s at most prove something")


async def _race(
    backbone: Path, shared_oracle: dict[str, Oracle], seed: int, feed_doubt_s: float | None
) -> float:
    """Run it once, and judge unless the machine stood still. Returns for how long it did, in s."""
    async with processor_world(backbone, feed_doubt_s=feed_doubt_s, resolve_ttl_s=TTL_S) as world:
        oracle = shared_oracle.setdefault("", Oracle(world.backbone))
        for tenant in TENANTS:
            if tenant not in oracle.pools:
                oracle.fill(tenant, MODULES)
        await _shrink(world, oracle)
        history = History(world.storage, oracle, Random(seed))
        async with world.client(TENANTS[0]) as first, world.client(TENANTS[1]) as second:
            clients = dict(zip(TENANTS, (first, second), strict=True))
            race = Race(seed, world, history, clients, time.monotonic() + RUN_S)
            watch = asyncio.create_task(race.watch())
            await _run(race)
            if race.stall_s <= SLACK_S:
                _judge(race, oracle)
                await _calm_down(race)
            if race.stall_s <= SLACK_S:
                _judge(race, oracle)
                await _clear(race)
            watch.cancel()
            return race.stall_s


async def _shrink(world: World, oracle: Oracle) -> None:
    """Give the processor memory for a few modules only."""
    residency = world.processor.pipeline._parts.dispatch._residency
    largest = 0
    for index, stored in enumerate(oracle.pools[TENANTS[0]][:7]):
        world.storage.put(f"tenants/acme/vplms/size{index}", stored.spec, stored.data)
        before = residency.host.space.nbytes
        await world.infer("acme", f"tenants/acme/vplms/size{index}", ["a"])
        largest = max(largest, residency.host.space.nbytes - before)
    world.processor.pipeline.demand.sweep(0.0)
    for tier in (residency.host, residency.device):
        tier.space.bytes_max = int(MEMORY_MODULES * largest)
    assert residency.host.space.nbytes == 0


async def _run(race: Race) -> None:
    for tenant in TENANTS:
        for vplm in IDS:
            race.history.change(_vplm(tenant, vplm), "replace")
    pauses = race.random("pauses")
    race.world.storage.pause_s = lambda: pauses.choice((0.0, 0.0, 0.001, 0.01, 0.03))
    actors = [race.repeat(f"infer {index}", race.infer, 0.002) for index in range(8)]
    actors += [race.repeat(f"fan out {index}", race.infer_fanout, 0.01) for index in range(2)]
    actors += [race.repeat(f"change {index}", race.change, 0.02) for index in range(2)]
    actors += [race.repeat(f"rent {index}", race.rent, 0.03) for index in range(2)]
    actors.append(race.repeat("sweep", race.sweep, 0.1))
    async with asyncio.timeout(RUN_S + PATIENT_S), asyncio.TaskGroup() as group:
        for actor in actors:
            group.create_task(actor)


def _judge(race: Race, oracle: Oracle) -> None:
    for reply in race.replies:
        answer = reply.answer
        if isinstance(answer, SmileError):
            assert type(answer) is NotFound, race.blame(reply, "no error but this is explained")
            past = race.history.during(reply.vplm, reply.start - SLACK_S, reply.end)
            absent = any(not one.reached(reply.version) for one in past)
            assert absent, race.blame(reply, "it was there all the time")
            continue
        old = reply.start - TTL_S - PATIENCE_S - SLACK_S
        past = race.history.during(reply.vplm, old, reply.end)
        proof = (answer.version, answer.digest)
        proven = any(proof in one.reached(reply.version).items() for one in past)
        assert proven, race.blame(reply, "that version did not serve then")
        for text, prediction in zip(reply.texts, reply.predictions, strict=True):
            try:
                check_one(cast(World, oracle), answer.digest, text, prediction)
            except AssertionError as error:
                pytest.fail(race.blame(reply, f"other numbers than that version's: {error}"))
    kinds = Counter(type(reply.answer) for reply in race.replies)
    assert min(kinds[InferResult], kinds[FanoutAnswer], kinds[NotFound]) > 10, kinds


async def _calm_down(race: Race) -> None:
    """Nothing changes any more: after `TTL_S` every answer is the current version's."""
    race.world.storage.pause_s = None
    for tenant in TENANTS:
        for vplm in IDS:
            name = _vplm(tenant, vplm)
            race.history.change(name, "whole" if race.history.versions(name) else "put")
    await asyncio.sleep(2 * TTL_S)
    for tenant in TENANTS:
        for vplm in IDS:
            name, start = _vplm(tenant, vplm), time.monotonic()
            result = await race.clients[tenant].infer(name, TEXTS)
            race.replies.append(Reply(name, None, start, time.monotonic(), TEXTS, result))
            (now,) = race.history.during(name, time.monotonic(), time.monotonic())
            if race.stall_s > SLACK_S:
                return
            assert {result.version: result.digest} == now.reached(None), race.blame(
                race.replies[-1], "an old version"
            )


async def _clear(race: Race) -> None:
    """Give everything back, and look whether anything stayed."""
    for tenant, client in race.clients.items():
        for vplm in IDS:
            try:
                await client.release(vplm)
            except NotFound:
                assert race.world.processor.renting is not None, tenant
    pipeline = race.world.processor.pipeline
    dispatch, demand = pipeline._parts.dispatch, pipeline.demand
    residency = dispatch._residency
    async with asyncio.timeout(PATIENT_S):
        while (  # noqa: ASYNC110 -- threads have no event
            demand._loads
            or len(race.world.processor.renting._tasks) > 1
            or residency._transfers
            or dispatch._works
        ):
            await asyncio.sleep(0.01)
    demand.sweep(0.0)
    assert (residency.host.space.nbytes, residency.device.space.nbytes) == (0, 0)
    assert (len(residency), len(residency.host), len(residency.device)) == (0, 0, 0)
    assert not (residency._demand or residency._loading or residency._idle)
    assert (residency._pinned_host, residency._pinned_device) == (0, 0)
    assert not (demand._waiters or demand._arrivals or demand._prefetches)
    assert not pipeline._gathering._groups
    assert not (dispatch._travelling or dispatch._gone)
    inside = pipeline._parts.admission.inside
    assert (inside.texts, inside.tokens, race.world.stats.queue_texts) == (0, 0, 0)
    assert race.world.stats.module_evictions_total > 10, "there was little room"
    alive = [thread.name for thread in threading.enumerate()]
    assert len([name for name in alive if "device" in name or "prepare" in name]) >= 2, alive


def _vplm(tenant: str, vplm: str) -> str:
    return f"tenants/{tenant}/vplms/{vplm}"
