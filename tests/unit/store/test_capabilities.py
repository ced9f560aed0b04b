"""What a store can do is tried, and one that does not keep a promise is found out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from smile.errors import FailedPrecondition, Unavailable
from smile.maintenance import Capability, StoreMode
from smile.store.capabilities import NEEDS, check_modes, mode_reports, probe_capabilities
from smile.store.objects import Object, ObjectInfo, ProbedStore, open_store
from smile.store.remote import RemoteStore, memory_store

pytestmark = pytest.mark.asyncio
ALL = {
    Capability.CREATE_ONLY,
    Capability.CONDITIONAL_REPLACE,
    Capability.READ_AFTER_WRITE,
    Capability.LIST_AFTER_WRITE,
    Capability.STREAMED_WRITES,
    Capability.RANGE_READS,
}


async def granted(store: ProbedStore) -> set[Capability]:
    return {report.capability for report in await probe_capabilities(store) if report.granted}


@pytest.mark.parametrize(
    ("kind", "more"),
    [("memory", set()), ("directory", {Capability.SHARED, Capability.DURABLE})],
)
async def test_ours_can_do_everything(kind: str, more: set[Capability], tmp_path: Path) -> None:
    store = open_store("memory://" if kind == "memory" else f"file://{tmp_path}/objects")
    assert await granted(store) == ALL | more
    assert await store.list_objects("") == []


class Lying(RemoteStore):
    """Keeps all promises but one."""

    def __init__(self) -> None:
        super().__init__(memory_store()._backend, "liar", timeout_s=10.0)


class CreatesTwice(Lying):
    async def put_if_absent(self, key: str, data: bytes) -> bool:
        await self._put(key, data, "overwrite")  # type: ignore[arg-type]
        return True


class ReplacesAnything(Lying):
    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        return await self._put(key, data, "overwrite")  # type: ignore[arg-type]


class ReadsOld(Lying):
    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, Object | None] = {}

    async def get(self, key: str) -> Object | None:
        if key not in self._seen:
            self._seen[key] = await super().get(key)
        return self._seen[key]


class ListsLate(Lying):
    async def list_objects(self, prefix: str, **how: Any) -> list[ObjectInfo]:
        found = await super().list_objects(prefix, **how)
        return [info for info in found if not info.key.endswith("-2")]


class ShowsTorn(Lying):
    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        data = b""
        try:
            async for chunk in chunks:
                data += chunk
        finally:
            await self._put(key, data, "overwrite")  # type: ignore[arg-type]


class GivesAll(Lying):
    async def get_range(self, key: str, start: int, length: int) -> bytes:
        found = await super().get(key)
        assert found is not None
        return found.data


LIARS: list[tuple[type[Lying], Capability]] = [
    (CreatesTwice, Capability.CREATE_ONLY),
    (ReplacesAnything, Capability.CONDITIONAL_REPLACE),
    (ReadsOld, Capability.READ_AFTER_WRITE),
    (ListsLate, Capability.LIST_AFTER_WRITE),
    (ShowsTorn, Capability.STREAMED_WRITES),
    (GivesAll, Capability.RANGE_READS),
]


@pytest.mark.parametrize(("liar", "missing"), LIARS, ids=[str(c) for _, c in LIARS])
async def test_a_broken_promise_is_found_and_refused(
    liar: type[Lying], missing: Capability
) -> None:
    store = liar()
    seen = await probe_capabilities(store)
    found = {report.capability: report for report in seen}
    assert not found[missing].granted and found[missing].detail
    modes = mode_reports(seen, frozenset({StoreMode.RECORDS}))
    if missing not in NEEDS[StoreMode.RECORDS]:
        check_modes("liar", seen, modes)
        return
    with pytest.raises(FailedPrecondition) as caught:
        check_modes("liar", seen, modes)
    assert caught.value.reason == "STORE_UNSUITABLE"
    assert str(missing) in caught.value.message and "'records'" in caught.value.message
    assert missing in caught.value.metadata["records"].split(",")


async def test_modes_that_are_not_wanted_are_only_told() -> None:
    store = open_store("memory://")
    seen = await probe_capabilities(store)
    modes = {m.mode: m for m in mode_reports(seen, frozenset({StoreMode.RECORDS}))}
    assert modes[StoreMode.REPLICAS].missing == (Capability.SHARED,)
    assert modes[StoreMode.VERSIONED].missing == (Capability.VERSIONING,)
    check_modes("it", seen, modes.values())
    for mode in (StoreMode.REPLICAS, StoreMode.VERSIONED):
        with pytest.raises(FailedPrecondition, match=str(mode)):
            check_modes("it", seen, mode_reports(seen, frozenset({mode})))


async def test_a_store_that_is_away_is_no_liar() -> None:
    class Away(Lying):
        async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
            raise Unavailable("gone", reason="STORE_UNAVAILABLE")

    with pytest.raises(Unavailable):
        await probe_capabilities(Away())
