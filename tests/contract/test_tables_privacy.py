"""What of tenants' texts is kept where others, or the operator, could read it: nothing but n-grams
that enough tenants asked for often enough, and nothing at all where learning is off.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from pydantic import SecretStr

from services.processor.materialize.learning import LiveRows
from smile.model.kernels.ngrams import cells_of
from smile.representations.keys import keys_of_texts
from smile.representations.traffic import CountRules, Counts
from smile.store.redis import Redis, connect
from tests.contract.tables_world import (
    ASKED,
    LEARNING,
    NEVER,
    PATIENCE_S,
    SEEN,
    TENANTS,
    Asked,
    Ground,
    redis_server,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]
SECRET = "the queen will buy the red ship in paris"
TIMES = 10_000
BATCH = 500
SPY = TENANTS[0]
RULES: dict[str, Any] = {**LEARNING, "learn_tenants_min": 3, "learn_count_min": 8.0}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.at(tmp_path_factory.mktemp("ground"))


@pytest.fixture
def url() -> Iterator[SecretStr]:
    with redis_server() as server:
        yield SecretStr(server.url)


@pytest_asyncio.fixture(loop_scope="module")
async def redis(url: SecretStr) -> AsyncIterator[Redis]:
    client = connect(url.get_secret_value(), text=False)
    yield client
    await client.aclose()


def keys(ground: Ground, *texts: str) -> NDArray[np.int64]:
    """The texts' different n-grams."""
    ids = [text.ids for text in ground.encoder.backbone.tokenizer.encode(list(texts))]
    return np.unique(keys_of_texts(ids, ground.encoder.local.outside))


def secret(ground: Ground) -> NDArray[np.int64]:
    """N-grams that the secret alone has."""
    return np.setdiff1d(keys(ground, SECRET), keys(ground, *SEEN, *ASKED, NEVER))


def live(asked: Asked) -> LiveRows:
    return asked.world.processor.engine.live_rows()["toy"]


async def stored(redis: Redis) -> tuple[set[int], bytes]:
    """Keys that Redis has, and all its bytes."""
    found: set[int] = set()
    everything = b""
    for name in await redis.keys("*"):
        everything += cast("bytes", name)
        for number, fields in cast("Any", await redis.xrange(name)):
            everything += number + b"".join(itertools.chain.from_iterable(fields.items()))
            found |= set(np.frombuffer(fields[b"keys"], np.int64).tolist())
    return found, everything


async def say(asked: Asked, text: str, tenant: str, times: int) -> None:
    for done in range(0, times, BATCH):
        await asked.infer([text] * min(BATCH, times - done), tenant=tenant)


async def shout(
    asked: Asked, ground: Ground, text: str, tenants: Sequence[str], much: float
) -> None:
    """Tenants say it, one request after the other, until it was counted so often."""
    own = keys(ground, text)
    async with asyncio.timeout(PATIENCE_S):
        while live(asked)._counts.of(own).min() < much:
            await asyncio.gather(*(asked.infer([text], tenant=tenant) for tenant in tenants))


async def test_what_one_tenant_says_ten_thousand_times_is_nowhere(
    ground: Ground, url: SecretStr, redis: Redis
) -> None:
    own = secret(ground)
    assert len(own) > 5
    async with ground.processor(cache_redis_url=url, **RULES) as asked:
        await say(asked, SECRET, SPY, TIMES)
        await shout(asked, ground, SECRET, [SPY], 10 * RULES["learn_count_min"])
        await asked.learned(ASKED)  # others' traffic is learned beside it, so rounds were run
        assert live(asked)._counts.of(own).min() >= RULES["learn_count_min"], "often enough"
        found, everything = await stored(redis)
        assert set(keys(ground, *ASKED).tolist()) <= found
        assert not found & set(own.tolist())
        assert not any(key.tobytes() in everything for key in own)
        for word in (SECRET, *TENANTS, "acme", "asked"):
            assert word.encode() not in everything
        assert (live(asked).view.find(own) < 0).all(), "nor has it a row in memory"
        assert await asked.missing([SECRET]) >= len(own), "so nobody sees that it was said"


async def test_enough_tenants_but_too_seldom_or_too_few_are_not_told(
    ground: Ground, url: SecretStr, redis: Redis
) -> None:
    rules = {**RULES, "learn_count_min": 100.0}
    async with ground.processor(cache_redis_url=url, **rules) as asked:
        await asked.everybody([SECRET], times=3)
        await shout(asked, ground, ASKED[0], TENANTS[:1], 200.0)
        await shout(asked, ground, ASKED[1], TENANTS[:2], 200.0)
        await _rounds(asked)
        of_one = _of_one(ground, SECRET, *ASKED)
        assert not (await stored(redis))[0] & set(of_one.tolist())
        assert (live(asked).view.find(of_one) < 0).all()


def _of_one(ground: Ground, *texts: str) -> NDArray[np.int64]:
    """N-grams that are in one of the texts alone."""
    found, texts_with = np.unique(
        np.concatenate([keys(ground, text) for text in texts]), return_counts=True
    )
    alone: NDArray[np.int64] = found[texts_with == 1]
    assert len(alone) > 20
    return alone


async def _rounds(asked: Asked) -> None:
    """Some rounds of learning pass: what was heard is counted, and what is due is learned."""
    for _ in range(3):
        await asked.world.processor.keeper.round()


async def test_switched_off_nothing_is_counted_told_or_taken_in(
    ground: Ground, url: SecretStr, redis: Redis
) -> None:
    rules = {**RULES, "learn_tenants_min": 1, "learn_count_min": 1.0, "learn_s": 3_600.0}
    async with ground.processor(cache_redis_url=url, **{**rules, "learn": False}) as off:
        await off.everybody([SECRET], times=3)
        await _rounds(off)
        rows = live(off)
        assert not rows._heard and not rows._counts.of(keys(ground, SECRET)).any()
        assert rows.count == 0 and await stored(redis) == (set(), b"")
        async with ground.processor(cache_redis_url=url, **rules) as on:
            await on.everybody(ASKED)
            await _rounds(on)
            assert (await stored(redis))[0]
            await _rounds(off)
            assert rows.count == 0, "nor are others' rows taken in"
            live(on).switch(learning=False)
            assert not live(on)._counts.of(keys(ground, *ASKED)).any(), "what was counted is gone"
            await redis.flushall()
            await on.everybody([SECRET], times=3)
            await _rounds(on)
            assert await stored(redis) == (set(), b""), "nothing is told any more"


async def test_a_snapshot_is_of_its_corpus_alone(ground: Ground, tmp_path: Path) -> None:
    place = ground.table("of corpus", SEEN)
    rules = {**RULES, "learn_tenants_min": 1, "learn_count_min": 1.0}
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    async with ground.processor(place, **rules) as asked:
        await asked.learned([SECRET])
    after = {file.name: file.read_bytes() for file in place.iterdir()}
    assert before == after, "what traffic taught is in memory, and in Redis where that is named"


async def test_who_asked_cannot_be_had_from_the_counts(ground: Ground) -> None:
    """Beside a count there are 32 bits, by a key that a process draws: for whoever has the memory
    of counts, every tenant is as likely to be one that asked as any other."""
    asked, others = keys(ground, SECRET), [f"tenant-{number}" for number in range(400)]
    rules = CountRules(memory_bytes_max=1 << 14)
    bits_of: dict[str, set[int]] = {name: set() for name in others}
    for _ in range(24):  # processes
        counts = Counts(rules)
        for name in others:
            counts.observe(asked, name)
            _, found, tenants = cells_of(counts._lines)
            (bits,) = {int(bit) for bit in tenants[found > 0]}
            assert bits.bit_count() == 1, "one of 32, which it shares with a thirty-second of all"
            bits_of[name].add(bits)
            assert name.encode() not in counts._lines.tobytes()
            counts.forget()
    assert all(len(bits) > 1 for bits in bits_of.values()), "another one in every process"
    shares = np.bincount([bit.bit_length() for bits in bits_of.values() for bit in bits])[1:]
    assert len(shares) == 32 and shares.min() > shares.max() / 3, "all alike"
