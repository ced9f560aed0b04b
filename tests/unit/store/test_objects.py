"""One contract for every object store: directory, memory, and S3: moto's server and Ceph's gateway.

With `SMILE_TEST_S3_ENDPOINT` (and `_ACCESS_KEY`, `_SECRET_KEY`) set, also the S3 service there, as
MinIO.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from smile.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from smile.maintenance import Capability
from smile.store.capabilities import probe_capabilities
from smile.store.objects import ObjectStore, ProbedStore, Reading, S3Options, open_store

ENDPOINT = os.environ.get("SMILE_TEST_S3_ENDPOINT")
KINDS = ("directory", "memory", "moto", "ceph", *(("endpoint",) if ENDPOINT else ()))

pytestmark = pytest.mark.timeout(600)  # the first test that wants Ceph starts it


@pytest.fixture
def s3_endpoint(moto_s3: S3Options) -> str:
    return moto_s3.endpoint


def _options(request: pytest.FixtureRequest) -> S3Options:
    if request.param != "endpoint":
        found = request.getfixturevalue(f"{request.param}_s3")
        assert isinstance(found, S3Options)
        return found
    assert ENDPOINT is not None
    access = os.environ["SMILE_TEST_S3_ACCESS_KEY"]
    return S3Options(ENDPOINT, access, os.environ["SMILE_TEST_S3_SECRET_KEY"])


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ProbedStore:
    if request.param == "directory":
        return open_store(f"file://{tmp_path}/objects")
    if request.param == "memory":
        return open_store("memory://")
    made = open_store(f"s3://smile-test-{uuid.uuid4().hex}", _options(request))
    asyncio.run(made.probe())
    return made


async def _chunks(*chunks: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if then is not None:
        raise then


async def _all(store: ObjectStore, key: str, chunk_bytes: int = 1 << 20) -> list[bytes]:
    return [chunk async for chunk in store.get_stream(key, chunk_bytes)]


async def _keys(store: ObjectStore, prefix: str = "", **options: object) -> list[str]:
    return [info.key for info in await store.list_objects(prefix, **options)]  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_put_if_absent_lets_the_first_writer_win(store: ObjectStore) -> None:
    assert await store.put_if_absent("a/b/c.json", b"first")
    assert not await store.put_if_absent("a/b/c.json", b"second")
    found = await store.get("a/b/c.json")
    assert found is not None
    assert found.data == b"first"


@pytest.mark.asyncio
async def test_one_of_many_concurrent_creates_wins(store: ObjectStore) -> None:
    results = await asyncio.gather(
        *(store.put_if_absent("race", str(n).encode()) for n in range(12))
    )
    found = await store.get("race")
    assert results.count(True) == 1
    assert found is not None
    assert found.data == str(results.index(True)).encode()


@pytest.mark.asyncio
async def test_compare_and_swap_refuses_stale_tags(store: ObjectStore) -> None:
    first = await store.compare_and_swap("k", b"1", None)
    second = await store.compare_and_swap("k", b"2", first)
    assert second != first
    for etag in (first, None):
        with pytest.raises(Aborted):
            await store.compare_and_swap("k", b"3", etag)
    with pytest.raises(Aborted):
        await store.compare_and_swap("absent", b"3", first)
    found = await store.get("k")
    assert found is not None
    assert (found.data, found.etag) == (b"2", second)


@pytest.mark.asyncio
async def test_concurrent_increments_lose_nothing(store: ObjectStore) -> None:
    await store.put_if_absent("count", b"0")

    async def increment() -> None:
        while True:
            found = await store.get("count")
            assert found is not None
            try:
                await store.compare_and_swap("count", b"%d" % (int(found.data) + 1), found.etag)
                return
            except Aborted:
                await asyncio.sleep(0)

    await asyncio.gather(*(increment() for _ in range(10)))
    found = await store.get("count")
    assert found is not None
    assert found.data == b"10"


@pytest.mark.asyncio
async def test_streams_come_back_in_bounded_chunks(store: ObjectStore) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB
    parts = [data[start : start + 700_000] for start in range(0, len(data), 700_000)]
    await store.put_stream("deep/er/blob", _chunks(*parts))
    chunks = await _all(store, "deep/er/blob", 1 << 18)
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) <= 1 << 18


@pytest.mark.asyncio
async def test_a_stream_larger_than_one_part_survives(store: ObjectStore) -> None:
    piece = b"x" * (1 << 20)
    await store.put_stream("big", _chunks(*[piece] * 18))
    assert sum(map(len, await _all(store, "big"))) == 18 << 20


@pytest.mark.asyncio
async def test_an_empty_stream_is_an_empty_object(store: ObjectStore) -> None:
    await store.put_stream("empty", _chunks())
    assert await _all(store, "empty") == []
    assert await _keys(store) == ["empty"]


@pytest.mark.parametrize("chunks", [0, 3, 12])
@pytest.mark.asyncio
async def test_a_failing_stream_leaves_nothing(store: ObjectStore, chunks: int) -> None:
    source = _chunks(*[b"y" * (1 << 20)] * chunks, then=InvalidArgument("digest differs"))
    with pytest.raises(InvalidArgument, match="digest differs"):
        await store.put_stream("torn/blob", source)
    assert await store.get("torn/blob") is None
    assert await _keys(store) == []
    assert await store.list_folders("torn/") == []


@pytest.mark.asyncio
async def test_a_failing_stream_keeps_the_earlier_object(store: ObjectStore) -> None:
    await store.put_stream("k", _chunks(b"whole"))
    with pytest.raises(InvalidArgument):
        await store.put_stream("k", _chunks(b"torn", then=InvalidArgument("no")))
    assert await _all(store, "k") == [b"whole"]


@pytest.mark.asyncio
async def test_listings_are_in_byte_order_of_the_whole_key(store: ObjectStore) -> None:
    keys = ["a/x", "a-b/x", "a/y/z", "a.b", "b", "a0/x", "aa/b/c", "a/x-1"]
    for key in keys:
        await store.put_if_absent(key, key.encode())
    assert await _keys(store) == sorted(keys)
    assert await _keys(store, "a/") == ["a/x", "a/x-1", "a/y/z"]
    assert await _keys(store, "nothing/") == []
    infos = await store.list_objects("a/")
    assert [info.size for info in infos] == [3, 5, 5]


@pytest.mark.asyncio
async def test_pages_of_any_size_visit_every_key_once(store: ObjectStore) -> None:
    keys = sorted(f"t/{a}/{b}.json" for a in ("m", "m-1", "m1", "n") for b in range(4))
    for key in keys:
        await store.put_if_absent(key, b"")
    for limit in (1, 3, 5, 100):
        seen: list[str] = []
        while page := await _keys(store, "t/", after=seen[-1] if seen else None, limit=limit):
            assert len(page) <= limit
            seen += page
        assert seen == keys


@pytest.mark.asyncio
async def test_folders_are_names_with_something_inside(store: ObjectStore) -> None:
    for key in ("v/b/1", "v/a/1", "v/a-1/2/3", "v/file"):
        await store.put_if_absent(key, b"")
    assert await store.list_folders("v/") == ["a", "a-1", "b"]
    await store.delete("v/b/1")
    assert await store.list_folders("v/") == ["a", "a-1"]
    assert await store.list_folders("w/") == []


@pytest.mark.asyncio
async def test_delete_is_idempotent(store: ObjectStore) -> None:
    await store.put_if_absent("x/y", b"1")
    await store.delete("x/y")
    await store.delete("x/y")
    assert await store.get("x/y") is None
    assert await store.put_if_absent("x/y", b"2")


@pytest.mark.asyncio
async def test_reading_what_is_absent(store: ObjectStore) -> None:
    assert await store.get("none") is None
    with pytest.raises(NotFound):
        await _all(store, "none")


@pytest.mark.asyncio
async def test_what_one_object_names_is_read_next(store: ObjectStore) -> None:
    await store.put_if_absent("a", b"b/first")
    await store.put_if_absent("b/first", b"c/absent")

    def names() -> Reading[list[str]]:
        found, key = list[str](), "a"
        while (one := (yield key)) is not None:
            key = one.data.decode()
            found.append(key)
        return found

    assert await store.read(names()) == ["b/first", "c/absent"]


@pytest.mark.asyncio
async def test_what_a_reading_raises_is_raised(store: ObjectStore) -> None:
    def refusing() -> Reading[None]:
        if (yield "a/absent") is None:
            raise NotFound("a/absent does not exist")

    with pytest.raises(NotFound, match="a/absent"):
        await store.read(refusing())


@pytest.mark.asyncio
async def test_a_reading_of_nothing_returns(store: ObjectStore) -> None:
    def nothing() -> Reading[int]:
        yield from ()
        return 7

    assert await store.read(nothing()) == 7


@pytest.mark.asyncio
async def test_probe_passes_and_leaves_nothing(store: ObjectStore) -> None:
    await store.probe()
    assert await _keys(store) == []


@pytest.mark.asyncio
async def test_the_probe_finds_all_that_storage_needs(store: ProbedStore) -> None:
    seen = {report.capability: report for report in await probe_capabilities(store)}
    lacking = {capability for capability, report in seen.items() if not report.granted}
    assert lacking <= {Capability.VERSIONING, Capability.SHARED, Capability.DURABLE}, seen
    assert await _keys(store) == []


@pytest.mark.asyncio
async def test_parts_of_objects_are_read(store: ProbedStore) -> None:
    await store.put_if_absent("k", bytes(range(100)))
    assert await store.get_range("k", 10, 5) == bytes(range(10, 15))
    assert await store.get_range("k", 95, 50) == bytes(range(95, 100))
    with pytest.raises(NotFound):
        await store.get_range("none", 0, 1)


@pytest.mark.parametrize("kind", ["moto", "ceph"])
@pytest.mark.asyncio
async def test_a_bucket_is_prepared_as_asked(kind: str, request: pytest.FixtureRequest) -> None:
    options = request.getfixturevalue(f"{kind}_s3")
    name = f"s3://smile-test-{uuid.uuid4().hex}"
    with pytest.raises(FailedPrecondition) as caught:
        await open_store(name, replace(options, create_bucket=False)).prepare()
    assert caught.value.reason == "BUCKET_MISSING"
    plain = open_store(name, options)
    await plain.prepare()
    await plain.prepare()
    assert not await plain.versioned()
    keeping = open_store(name, replace(options, keep_versions=True))
    await keeping.prepare()
    assert await keeping.versioned()
    seen = {report.capability: report.granted for report in await probe_capabilities(keeping)}
    assert seen.pop(Capability.VERSIONING)
    if kind == "moto":
        await keeping.probe()
    elif not seen.pop(Capability.CREATE_ONLY):  # Ceph 16 forgets both in buckets with versions
        with pytest.raises(FailedPrecondition) as caught:
            await keeping.probe()
        assert caught.value.reason == "STORE_UNSUITABLE"
        seen.pop(Capability.CONDITIONAL_REPLACE)
    assert all(seen.values()), seen


@pytest.mark.asyncio
async def test_wrong_credentials_are_told(ceph_s3: S3Options) -> None:
    wrong = open_store("s3://smile-test-denied", replace(ceph_s3, secret_key="wrong"))
    for call in (wrong.prepare, wrong.probe, wrong.versioned):
        with pytest.raises(FailedPrecondition) as caught:
            await call()
        assert caught.value.reason == "STORE_ACCESS_DENIED"


BAD_KEYS = (
    "", "/", "/etc/passwd", "a/", "a//b", "..", "a/../b", ".", "a/.", ".hidden", "a\\b", "a\x00b",
    "ü", "a b", "a\n", "x" * 513, "-a", "%2e%2e/a", "x" * 200,
)  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.asyncio
async def test_keys_cannot_leave_their_place(store: ObjectStore, key: str) -> None:
    for call in (
        lambda: store.put_if_absent(key, b""),
        lambda: store.compare_and_swap(key, b"", None),
        lambda: store.get(key),
        lambda: store.put_stream(key, _chunks(b"")),
        lambda: _all(store, key),
        lambda: store.delete(key),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await call()
        assert caught.value.reason == "OBJECT_KEY_INVALID"


@pytest.mark.parametrize("prefix", ["/", "../", "a", "a/../", "a//"])
@pytest.mark.asyncio
async def test_prefixes_are_folders(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(InvalidArgument):
        await store.list_objects(prefix)
    with pytest.raises(InvalidArgument):
        await store.list_folders(prefix)


@pytest.mark.asyncio
async def test_an_s3_service_that_is_away_is_unavailable() -> None:
    options = S3Options("http://127.0.0.1:9", "k", "s", connect_timeout_s=0.2, retry_s=0.2)
    store = open_store("s3://bucket", options)
    for call in (
        lambda: store.get("k"),
        lambda: store.put_if_absent("k", b""),
        lambda: store.put_stream("k", _chunks(b"1")),
        lambda: _all(store, "k"),
        lambda: store.list_objects(""),
        lambda: store.list_folders(""),
        lambda: store.delete("k"),
        store.probe,
    ):
        with pytest.raises(Unavailable) as caught:
            await call()
        assert caught.value.reason == "STORE_UNAVAILABLE"
        assert caught.value.retry_after is not None
        assert "bucket 'bucket'" in caught.value.message


@pytest.mark.asyncio
async def test_a_missing_bucket_is_told_and_made_by_the_probe(s3_endpoint: str) -> None:
    store = open_store("s3://not-made-yet", S3Options(s3_endpoint, "key", "secret"))
    for call in (
        lambda: store.get("k"),
        lambda: store.put_if_absent("k", b""),
        lambda: store.put_stream("k", _chunks(b"1")),
        lambda: _all(store, "k"),
        lambda: store.list_objects(""),
        lambda: store.list_folders(""),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            await call()
        assert caught.value.reason == "BUCKET_MISSING"
    await store.probe()
    assert await store.put_if_absent("k", b"")


@pytest.mark.parametrize(
    ("url", "s3"),
    [
        ("", None),
        ("/plain/path", None),
        ("http://x", None),
        ("file://", None),
        ("file:///", None),
        ("file://host/path", None),
        ("file:relative", None),
        ("memory://x", None),
        ("s3://bucket", None),
        ("s3://", S3Options("http://h")),
        ("s3://UPPER", S3Options("http://h")),
        ("s3://bucket/folder", S3Options("http://h")),
    ],
)
def test_wrong_urls_are_refused(url: str, s3: S3Options | None) -> None:
    with pytest.raises(InvalidArgument):
        open_store(url, s3)
