"""Redis away, wiped, full or full of nonsense, and processors that write at once: answers in
materialised mode are those of an undisturbed processor to the bit, and rows return by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from pydantic import SecretStr
from redis.typing import EncodableT, FieldT

from services.processor.materialize.sharing import Shared, _encoded
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.representations.keys import ANY
from smile.representations.traffic import Weighed
from smile.store.redis import Redis, connect
from tests.contract.tables_world import ALL, ASKED, NEVER, SEEN, Asked, Bits, Ground, redis_server
from tests.faults.redis_server import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.at(tmp_path_factory.mktemp("ground"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(ground: Ground) -> tuple[Bits, Bits]:
    """What is answered materialised and exactly where nothing is wrong, and nothing is learned."""
    async with ground.processor(learn=False) as asked:
        return await asked.bits(), await asked.exact()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def client(redis: RedisServer) -> AsyncIterator[Redis]:
    made = connect(redis.url, text=False)
    yield made
    await made.aclose()


async def holds(asked: Asked, undisturbed: tuple[Bits, Bits]) -> None:
    """Answers are the undisturbed ones, in both modes."""
    assert (await asked.bits(), await asked.exact()) == undisturbed


async def two(ground: Ground, redis: RedisServer, stack: AsyncExitStack) -> tuple[Asked, Asked]:
    """Processors that tell each other."""
    url = SecretStr(redis.url)
    first = await stack.enter_async_context(ground.processor(cache_redis_url=url))
    second = await stack.enter_async_context(ground.processor(cache_redis_url=url))
    return first, second


@pytest.mark.parametrize(
    ("harm", "mend"),
    [
        (RedisServer.kill, RedisServer.start),
        (RedisServer.kill, RedisServer.wipe),
        (RedisServer.fill, RedisServer.empty),
    ],
    ids=["away", "away and wiped", "full"],
)
async def test_serving_goes_on_and_rows_return(
    ground: Ground,
    undisturbed: tuple[Bits, Bits],
    redis: RedisServer,
    harm: Callable[[RedisServer], None],
    mend: Callable[[RedisServer], None],
) -> None:
    async with AsyncExitStack() as stack:
        teller, hearer = await two(ground, redis, stack)
        await teller.learned([ASKED[0]])
        await hearer.until_found([ASKED[0]])
        harm(redis)
        await teller.learned([ASKED[1]])
        for one in (teller, hearer):
            await holds(one, undisturbed)
            assert await one.missing([ASKED[0]]) == 0, "what was learned stays in memory"
        assert await hearer.missing([ASKED[1]]), "nobody could tell it"
        mend(redis)
        await hearer.until_found(ASKED)
        joining = await stack.enter_async_context(
            ground.processor(cache_redis_url=SecretStr(redis.url))
        )
        await joining.until_found(ASKED)
        for one in (teller, hearer, joining):
            await holds(one, undisturbed)


async def test_wiped_amid_serving_it_is_told_all_again(
    ground: Ground, undisturbed: tuple[Bits, Bits], redis: RedisServer, client: Redis
) -> None:
    async with AsyncExitStack() as stack:
        teller, hearer = await two(ground, redis, stack)
        await teller.learned(ASKED)
        await hearer.until_found(ASKED)
        for _ in range(3):
            await client.flushall()
            async with asyncio.timeout(60):
                while not await client.keys("smile:rows:*"):
                    await holds(teller, undisturbed)
        joining = await stack.enter_async_context(
            ground.processor(cache_redis_url=SecretStr(redis.url))
        )
        await joining.until_found(ASKED)
        await holds(joining, undisturbed)


async def test_a_processor_starts_without_redis(
    ground: Ground, undisturbed: tuple[Bits, Bits], redis: RedisServer
) -> None:
    redis.kill()
    async with ground.processor(cache_redis_url=SecretStr(redis.url)) as asked:
        await asked.learned(ASKED)
        await holds(asked, undisturbed)


async def test_two_processors_learn_one_row_at_once(
    ground: Ground, undisturbed: tuple[Bits, Bits], redis: RedisServer, client: Redis
) -> None:
    async with AsyncExitStack() as stack:
        pair = await two(ground, redis, stack)
        async with asyncio.timeout(120):
            while any([await one.missing(ALL) for one in pair]):
                await asyncio.gather(*(one.everybody(ALL) for one in pair))
                for one in pair:
                    await holds(one, undisturbed)
        rows = await _rows_in(client, ground)
    packed = ground.encoder.stand_in.packed
    assert rows
    for key, found in rows.items():
        (wanted,) = packed(np.array([key]), _format(ground))
        assert found == {wanted.tobytes()}, "whoever told it, the row is the same"


async def test_nonsense_in_redis_is_left_out_and_the_rest_is_not(
    ground: Ground, undisturbed: tuple[Bits, Bits], redis: RedisServer, client: Redis
) -> None:
    async with AsyncExitStack() as stack:
        teller, hearer = await two(ground, redis, stack)
        await teller.learned([SEEN[0]])
        await hearer.until_found([SEEN[0]])
        (stream,) = await client.keys("smile:rows:*")
        for nonsense in _damaged((await _told(client))[0], ground):
            await client.xadd(stream, nonsense)
        await teller.learned([NEVER])
        await hearer.until_found([NEVER])
        for one in (teller, hearer):
            await holds(one, undisturbed)
        await client.delete(stream)
        await client.set(stream, b"no stream")
        await teller.learned(ASKED)
        await holds(teller, undisturbed)
        await client.delete(stream)
        await hearer.until_found(ASKED)
        await holds(hearer, undisturbed)


def _format(ground: Ground) -> RowFormat:
    return RowFormat(RowDtype.FLOAT16, ground.encoder.stand_in.origin.width)


async def _told(client: Redis) -> list[dict[bytes, bytes]]:
    """Every entry of the one stream."""
    (stream,) = await client.keys("smile:rows:*")
    return [fields for _, fields in cast("Any", await client.xrange(stream))]


async def _rows_in(client: Redis, ground: Ground) -> dict[int, set[bytes]]:
    """What Redis has for each key, of whichever teller."""
    found: dict[int, set[bytes]] = {}
    for fields in await _told(client):
        keys = np.frombuffer(fields[b"keys"], np.int64)
        rows = np.frombuffer(fields[b"rows"], np.uint8)
        for key, row in zip(keys, rows.reshape(len(keys), -1), strict=True):
            assert len(row) == _format(ground).row_bytes
            found.setdefault(int(key), set()).add(row.tobytes())
    return found


def _damaged(whole: dict[bytes, bytes], ground: Ground) -> list[dict[FieldT, EncodableT]]:
    """What no processor of this kind tells, or only half told."""
    fields: dict[FieldT, EncodableT] = {
        **{name.decode(): value for name, value in whole.items()},
        "from": b"stranger",
    }
    flipped = bytearray(whole[b"rows"])
    flipped[len(flipped) // 2] ^= 4
    beyond = np.array([ANY << 21], np.int64)
    foreign = np.zeros((1, _format(ground).row_bytes), np.uint8)
    shared = Shared(Weighed(beyond, np.ones(1, np.float32)), foreign)
    wrong = Shared(Weighed(np.array([7], np.int64), np.ones(1, np.float32)), foreign)
    return [
        {"from": b"stranger"},
        fields | {"rows": bytes(flipped)},
        fields | {"rows": whole[b"rows"][:-1]},
        fields | {"keys": whole[b"keys"][:-8]},
        fields | {"counts": b""},
        fields | {"digest": b"\xff"},
        *(_encoded(one, "stranger") for one in (shared, wrong)),
    ]
