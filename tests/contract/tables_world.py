"""Processors that answer by tables, beside a Redis that can be hurt, and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from smile.model.backbone import Backbone
from smile.model.toy import write_toy_backbone
from smile.resources import Classification, InferResult
from smile.v1 import resources_pb2
from tests.contract.materialized_world import Encoder
from tests.contract.processor_world import World, processor_world
from tests.faults.redis_server import RedisServer

MATERIALIZED = resources_pb2.EXACTNESS_MATERIALIZED
PATIENCE_S = 120.0
POLL_S = 0.02
SEEN = ("the movie was good and the story was sad", "a slow train and a cold river")
ASKED = ("a cold movie and the slow story", "the river was sad and the train was good")
NEVER = "one boy and his black dog run along"
ALL = (*SEEN, *ASKED, NEVER)
TENANTS = tuple(f"tenant-{number}" for number in range(8))  # not all fall into one group
VPLM = "asked"
LEARNING: dict[str, Any] = {"learn_s": 0.05, "learn_tenants_min": 2, "learn_count_min": 2.0}

Bits = tuple[tuple[tuple[str, float], ...], ...]  # scores by label, of each text


@dataclass(frozen=True)
class Ground:
    """A toy backbone with a local encoder of random weights."""

    folder: Path
    backbone: Path
    encoder: Encoder

    @classmethod
    def at(cls, folder: Path) -> Ground:
        backbone = write_toy_backbone(folder / "toy")
        encoder = Encoder.make(Backbone.load(backbone, "toy"), folder / "encoder.safetensors")
        return cls(folder, backbone, encoder)

    def table(self, name: str, texts: Sequence[str] = SEEN) -> Path:
        """A new snapshot of the texts' rows."""
        return self.encoder.table(self.folder / name, texts)

    @asynccontextmanager
    async def processor(self, table: Path | None = None, **changes: Any) -> AsyncIterator[Asked]:
        """A processor that every one of `TENANTS` has a vPLM on, the same of all."""
        settings: dict[str, Any] = {"skip": f"toy={self.encoder.path}", **LEARNING, **changes}
        if table is not None:
            settings["tables"] = f"toy={table}"
        async with processor_world(self.backbone, **settings) as world:
            await world.ready()
            for tenant in TENANTS:
                world.add(tenant, VPLM)
            yield Asked(world)


@dataclass(frozen=True)
class Asked:
    """A processor, and what it answers."""

    world: World

    async def infer(
        self, texts: Sequence[str] = ALL, *, tenant: str = TENANTS[0], **asked: Any
    ) -> InferResult:
        """Materialised, where nothing else is asked for."""
        wanted = {"exactness": MATERIALIZED, **asked}
        name = f"tenants/{tenant}/vplms/{VPLM}"
        return await self.world.infer(tenant, name, list(texts), **wanted)

    async def bits(self, texts: Sequence[str] = ALL, **asked: Any) -> Bits:
        """Every score of every text."""
        return bits_of(await self.infer(texts, **asked))

    async def exact(self, texts: Sequence[str] = ALL) -> Bits:
        """The ordinary backbone's."""
        return await self.bits(texts, exactness=resources_pb2.EXACTNESS_EXACT)

    async def missing(self, texts: Sequence[str]) -> int:
        """N-grams of the texts that have no row."""
        told = (await self.infer(texts)).materialization
        assert told is not None
        return told.ngrams - told.found

    async def everybody(self, texts: Sequence[str], times: int = 1) -> None:
        """All tenants ask for the texts, so that their n-grams are worth learning."""
        asked = [self.infer(texts, tenant=tenant) for tenant in TENANTS for _ in range(times)]
        await asyncio.gather(*asked)

    async def learned(self, texts: Sequence[str]) -> None:
        """All tenants ask until every n-gram has a row."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.missing(texts):
                await self.everybody(texts)

    async def until_found(self, texts: Sequence[str]) -> None:
        """Every n-gram has a row, which nobody but one tenant asked for here."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.missing(texts):  # noqa: ASYNC110 -- another process's doing
                await asyncio.sleep(POLL_S)


def bits_of(result: InferResult) -> Bits:
    found = []
    for prediction in result.predictions:
        assert isinstance(prediction.result, Classification)
        found.append(tuple(sorted((row.label, row.score) for row in prediction.result.scores)))
    return tuple(found)


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A Redis of one's own, running."""
    with TemporaryDirectory(prefix="sr") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
