"""Processors that are killed while they tell one another rows they learned."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import smile
from smile.client.client import AsyncClient
from smile.errors import SmileError
from smile.model.backbone import Backbone
from smile.resources import Classification, Exactness, InferResult
from tests.contract.materialized_world import Encoder
from tests.faults.failpoints import Blow
from tests.faults.operations import TENANT
from tests.faults.platform import LABELS, Platform
from tests.faults.processes import PATIENCE_S, Child
from tests.faults.tally import Selection, Tally

SAME_ANSWERS = "materialised answers are the undisturbed ones to the bit; rows come back"
TEXTS = ("the movie was good and the story was sad", "a cold river and a slow train")
VPLM = "told"
STEPS = 40  # words to Redis: what is learned is told within the first dozen

Bits = tuple[tuple[tuple[str, float], ...], ...]


@dataclass
class Serving:
    """A processor, and a tenant who asks it."""

    child: Child
    client: AsyncClient

    async def ask(self) -> tuple[Bits, int]:
        """What it answers to the bit, and how many n-grams had no row."""
        result = await self.client.infer(VPLM, list(TEXTS), exactness=Exactness.MATERIALIZED)
        told = result.materialization
        assert told is not None
        return _bits(result), told.ngrams - told.found


def _bits(result: InferResult) -> Bits:
    found = []
    for prediction in result.predictions:
        assert isinstance(prediction.result, Classification)
        found.append(tuple(sorted((row.label, row.score) for row in prediction.result.scores)))
    return tuple(found)


@dataclass(frozen=True)
class Stage:
    """What processors need beside the platform."""

    here: Platform
    encoder: Encoder

    @classmethod
    async def of(cls, here: Platform) -> Stage:
        place = here.folder / "told.safetensors"
        with contextlib.suppress(smile.AlreadyExists):
            await here.client.create_vplm(
                VPLM, backbone="toy", pet=smile.Pfeiffer(4), labels=LABELS
            )
        return cls(here, Encoder.make(Backbone.load(here.backbone, "toy"), place))

    @asynccontextmanager
    async def processor(self, *, learn: bool = True) -> AsyncIterator[Serving]:
        """One more, ready."""
        here = self.here
        settings = {
            **{name: here.trainer.settings[name] for name in ("PATH", "OMP_NUM_THREADS")},
            "SMILE_SERVICE_KEY": here.store.service,
            "SMILE_STORAGE_ADDRESS": here.store.child.address,
            "SMILE_BACKBONES": f"toy=dir:{here.backbone}",
            "SMILE_LOG_LEVEL": "info",
            "SMILE_PROCESSOR_SKIP": f"toy={self.encoder.path}",
            "SMILE_PROCESSOR_CACHE_REDIS_URL": here.redis.url,
            "SMILE_PROCESSOR_LEARN": str(learn).lower(),
            "SMILE_PROCESSOR_LEARN_TENANTS_MIN": "1",
            "SMILE_PROCESSOR_LEARN_COUNT_MIN": "1",
            "SMILE_PROCESSOR_LEARN_S": "0.05",
            "SMILE_PROCESSOR_CALIBRATION_S": "0",
            "SMILE_PROCESSOR_LATENCY_CACHE": str(here.folder / "latency"),
            "SMILE_PROCESSOR_STREAMS": "1",
            "SMILE_PROCESSOR_THREADS": "1",
        }
        child = Child.listening(here.nursery, "processor", settings, here.folder)
        try:
            await child.start()
            async with AsyncClient(
                here.store.world.keys[TENANT], endpoints=f"processor={child.address}"
            ) as client:
                yield Serving(child, client)
        finally:
            await child.close()


async def killed_tellers(here: Platform, selection: Selection, tally: Tally) -> None:
    """One of two processors is killed at a word to Redis, and born again."""
    began = time.monotonic()
    stage = await Stage.of(here)
    async with stage.processor(learn=False) as alone:
        reference, _ = await alone.ask()
    for at in selection.of(STEPS, tally.fault):
        here.redis.wipe()
        async with AsyncExitStack() as stack:
            teller, hearer = [await stack.enter_async_context(stage.processor()) for _ in range(2)]
            teller.child.points.arm(Blow.KILL, at)
            await _asked_until_dead(teller, reference, tally, f"KILL at {at}")
            assert teller.child.points.struck
            step = teller.child.points.steps()[at - 1]
            tally.faults += 1
            tally.steps[step] += 1
            where = f"KILL at {at} ({step})"
            for _ in range(3):
                tally.whole((await hearer.ask())[0] == reference, f"{where}: the other's answers")
            teller.child.points.disarm()
            await teller.child.start()
            for one in (teller, hearer):
                await _found(one, reference, tally, where)
    tally.seconds += time.monotonic() - began


async def _asked_until_dead(one: Serving, reference: Bits, tally: Tally, where: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while one.child.alive:
        assert time.monotonic() < deadline, one.child.log.read_text()[-2000:]
        with contextlib.suppress(SmileError):  # the blow falls between two words of an answer, too
            tally.whole((await one.ask())[0] == reference, f"{where}: its answers before")
    await one.child.dead()


async def _found(one: Serving, reference: Bits, tally: Tally, where: str) -> None:
    """All rows come back, to the bit."""
    deadline = time.monotonic() + PATIENCE_S
    missing = [1]
    while missing[-1] and time.monotonic() < deadline:
        bits, count = await one.ask()
        tally.whole(bits == reference, f"{where}: other answers afterwards")
        missing.append(count)
    tally.expect(missing[-1] == 0, f"{where}: rows do not come back: {missing[-3:]}")
