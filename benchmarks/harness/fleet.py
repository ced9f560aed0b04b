"""Many vPLMs of many tenants, made through the API as their owners would.

Kinds come in the shares of the claim: of ten vPLMs four are Pfeiffer adapters, three LoRA, two
BitFit and one Houlsby, all of the SDK's default size in the upper half of the backbone; every
eleventh answers with an embedding, the others classify into two to five labels. A vPLM's seed is
its number, so heads and down-projections are all different, and so are the digests.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import smile
from benchmarks.harness.latency import Send
from benchmarks.harness.platforms import Platform, ProcessorProcess
from smile import AsyncClient, PetSpec
from smile.client.options import InferOptions
from smile.errors import DataCorrupted
from smile.resources import Exactness, InferResult

BACKBONE = "minilm"
KINDS = ("pfeiffer", "lora", "pfeiffer", "bitfit", "pfeiffer", "lora", "houlsby", "pfeiffer",
         "lora", "bitfit")  # fmt: skip
PETS: dict[str, PetSpec] = {
    "pfeiffer": smile.Pfeiffer(),
    "lora": smile.LoRA(),
    "bitfit": smile.BitFit(),
    "houlsby": smile.Houlsby(),
}
EMBEDS_EVERY = 11
LABELS = ("business", "entertainment", "politics", "sport", "tech")
CREATORS = 4  # vPLMs created at a time
FILE = "fleet.json"
WARM_TEXT = "a first question"


@dataclass(frozen=True, slots=True)
class Member:
    """One vPLM: its tenant's number, its id, its kind of PET module."""

    tenant: int
    vplm: str
    kind: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """vPLMs, and the keys of the tenants that own them."""

    keys: tuple[str, ...]
    members: tuple[Member, ...]

    def save(self, folder: Path) -> None:
        """Into a file that only its owner can read: there are keys in it."""
        path = folder / FILE
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Fleet | None:
        path = folder / FILE
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(tuple(found["keys"]), tuple(Member(**member) for member in found["members"]))


@dataclass(frozen=True, slots=True)
class Plan:
    """What fleet to make: `pets` in turn, where they are not those of the claim."""

    vplms: int
    tenants: int
    pets: tuple[tuple[str, PetSpec], ...] = tuple((kind, PETS[kind]) for kind in KINDS)
    prefix: str = "tenant"


async def create_tenants(platform: Platform, plan: Plan) -> tuple[str, ...]:
    """The tenants' keys. Their names are new, whoever has used this platform before."""
    run = secrets.token_hex(3)
    limit = asyncio.Semaphore(CREATORS)
    async with AsyncClient(platform.operator_key, endpoints=platform.state.endpoints) as operator:

        async def create(number: int) -> str:
            async with limit:
                return (await operator.create_tenant(f"{plan.prefix}-{run}-{number}")).key

        return tuple(await asyncio.gather(*(create(number) for number in range(plan.tenants))))


async def create_fleet(
    platform: Platform, plan: Plan, done: Callable[[], None]
) -> tuple[Fleet, list[float]]:
    """The fleet, and how many milliseconds each creation took, in order of number.

    The first and the last hundred are created one at a time, so that their times compare; those
    between, `CREATORS` at a time.
    """
    keys = await create_tenants(platform, plan)
    members = tuple(
        Member(number % plan.tenants, f"vplm-{number}", plan.pets[number % len(plan.pets)][0])
        for number in range(plan.vplms)
    )
    took_ms = [0.0] * plan.vplms

    async with Callers(Fleet(keys, members), platform.processor) as callers:

        async def create(number: int) -> None:
            started = time.perf_counter()
            await callers.client(members[number].tenant).create_vplm(
                members[number].vplm,
                backbone=BACKBONE,
                pet=plan.pets[number % len(plan.pets)][1],
                labels=() if number % EMBEDS_EVERY == EMBEDS_EVERY - 1 else _labels(number),
                seed=number + 1,
            )
            took_ms[number] = (time.perf_counter() - started) * 1e3
            done()

        await by_edges(plan.vplms, create, CREATORS)
    return Fleet(keys, members), took_ms


async def by_edges(count: int, act: Callable[[int], Awaitable[None]], concurrency: int) -> None:
    """`act` on 0 to `count`: the first and last hundred one by one, the others `concurrency` at a
    time.
    """
    edge = min(100, count // 2)
    for number in range(edge):
        await act(number)
    limit = asyncio.Semaphore(concurrency)

    async def limited(number: int) -> None:
        async with limit:
            await act(number)

    await asyncio.gather(*(limited(number) for number in range(edge, count - edge)))
    for number in range(count - edge, count):
        await act(number)


def _labels(number: int) -> tuple[str, ...]:
    return LABELS[: 2 + number % 4]


class Callers:
    """A client per tenant, each with connections of its own, opened when it first asks."""

    def __init__(
        self,
        fleet: Fleet,
        processor: ProcessorProcess,
        exactness: Exactness = Exactness.EXACT,
    ) -> None:
        self._fleet = fleet
        self._processor = processor
        self._exactness = exactness
        self._clients: dict[int, AsyncClient] = {}

    def client(self, tenant: int) -> AsyncClient:
        """The client of a tenant, by its number."""
        if tenant not in self._clients:
            self._clients[tenant] = self._processor.client(self._fleet.keys[tenant])
        return self._clients[tenant]

    async def ask(self, member: Member, texts: Sequence[str]) -> InferResult:
        """The answer, which came from the vPLM asked, or the run ends.

        Raises:
            DataCorrupted: another vPLM's version answered.
        """
        client = self.client(member.tenant)
        options = InferOptions(truncate=True, patient=False)
        if self._exactness is not Exactness.EXACT:
            options["exactness"] = self._exactness
        result = await client.infer(member.vplm, texts, **options)
        if f"/vplms/{member.vplm}/versions/" not in result.version:
            raise AssertionError(f"{member} was asked and {result.version} answered")
        if len(result.predictions) != len(texts):
            raise DataCorrupted(f"{len(texts)} texts asked, {len(result.predictions)} answered")
        return result

    async def close(self) -> None:
        clients = list(self._clients.values())
        self._clients.clear()
        await asyncio.gather(*(client.close() for client in clients))

    async def __aenter__(self) -> Callers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def asking(
    callers: Callers, members: Sequence[Member], picks: Sequence[int], texts: Sequence[str]
) -> Send:
    """Request `i` asks member `picks[i]` about text `i`; both begin again where they end."""

    async def send(number: int) -> None:
        member = members[picks[number % len(picks)]]
        await callers.ask(member, (texts[number % len(texts)],))

    return send


async def warm(
    callers: Callers, members: Sequence[Member], concurrency: int, done: Callable[[], None]
) -> None:
    """Ask every member once, so that all are in memory and every tenant is connected."""
    limit = asyncio.Semaphore(concurrency)

    async def ask(member: Member) -> None:
        async with limit:
            await callers.ask(member, (WARM_TEXT,))
            done()

    await asyncio.gather(*(ask(member) for member in members))
