"""What an object store can do, tried out, and which modes need what."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

from smile.errors import Aborted, FailedPrecondition, SmileError, Unavailable
from smile.limits import MIB
from smile.maintenance import Capability, CapabilityReport, ModeReport, StoreMode
from smile.store.objects import PROBE_PREFIX, ObjectStore, ProbedStore

STREAM_BYTES = 8 * MIB + 1  # more than a store takes in one part
_KEEPING = frozenset(
    {
        Capability.CREATE_ONLY,
        Capability.CONDITIONAL_REPLACE,
        Capability.READ_AFTER_WRITE,
        Capability.LIST_AFTER_WRITE,
        Capability.STREAMED_WRITES,
    }
)
NEEDS: Mapping[StoreMode, frozenset[Capability]] = {
    StoreMode.RECORDS: _KEEPING,
    StoreMode.REPLICAS: _KEEPING | {Capability.SHARED},
    StoreMode.VERSIONED: frozenset({Capability.VERSIONING}),
}


class _Broken(Exception):
    """A promise that the store did not keep."""


async def probe_capabilities(store: ProbedStore) -> tuple[CapabilityReport, ...]:
    """Try out everything, below `probe/`; leaves nothing behind.

    Raises:
        Unavailable: the store is away, so nothing can be told.
        FailedPrecondition: it cannot be used at all: access is denied, or there is no bucket.
    """
    prefix = f"{PROBE_PREFIX}{uuid.uuid4().hex}/"
    tried = await asyncio.gather(
        *(_tried(capability, trial, store, prefix) for capability, trial in _TRIALS.items()),
        return_exceptions=True,
    )
    for outcome in tried:
        if isinstance(outcome, BaseException):
            raise outcome
    reports = [outcome for outcome in tried if isinstance(outcome, CapabilityReport)]
    traits = (
        CapabilityReport(
            Capability.SHARED, store.shared, "" if store.shared else "only this process sees it"
        ),
        CapabilityReport(
            Capability.DURABLE, store.durable, "" if store.durable else "it ends with this process"
        ),
    )
    return (*reports, *traits, await _versioning(store))


def mode_reports(
    seen: Iterable[CapabilityReport], wanted: frozenset[StoreMode]
) -> tuple[ModeReport, ...]:
    """What each mode lacks."""
    granted = {report.capability for report in seen if report.granted}
    return tuple(
        ModeReport(mode, mode in wanted, tuple(sorted(needs - granted)))
        for mode, needs in NEEDS.items()
    )


def check_modes(store: str, seen: Iterable[CapabilityReport], modes: Iterable[ModeReport]) -> None:
    """Raises `FailedPrecondition` where the store lacks what a mode that is wanted needs."""
    details = {report.capability: report.detail for report in seen}
    refused = [mode for mode in modes if mode.wanted and not mode.granted]
    if not refused:
        return
    lacks = "; ".join(
        f"mode '{mode.mode}' needs "
        + ", ".join(f"'{each}' ({details.get(each) or 'missing'})" for each in mode.missing)
        for mode in refused
    )
    raise FailedPrecondition(
        f"{store} cannot be used: {lacks}",
        reason="STORE_UNSUITABLE",
        metadata={str(mode.mode): ",".join(mode.missing) for mode in refused},
    )


Trial = Callable[[ProbedStore, str], Awaitable[None]]


async def _tried(
    capability: Capability, trial: Trial, store: ProbedStore, prefix: str
) -> CapabilityReport:
    key = f"{prefix}{capability}"
    try:
        await trial(store, key)
    except _Broken as broken:
        return CapabilityReport(capability, granted=False, detail=str(broken))
    except Aborted:
        why = "a replacement was refused, though nobody else had changed anything"
        return CapabilityReport(capability, granted=False, detail=why)
    except (Unavailable, FailedPrecondition) as error:
        if error.reason != "STORE_UNSUITABLE":
            raise
        return CapabilityReport(capability, granted=False, detail=error.message)
    finally:
        await _removed(store, key)
    return CapabilityReport(capability, granted=True)


async def _removed(store: ObjectStore, key: str) -> None:
    """Best effort: a store that is away keeps a key that the sweeper finds."""
    for each in (key, f"{key}-2"):
        try:
            await store.delete(each)
        except SmileError:
            return


def _promise(kept: bool, broken: str) -> None:
    if not kept:
        raise _Broken(broken)


async def _data(store: ObjectStore, key: str) -> bytes | None:
    found = await store.get(key)
    return None if found is None else found.data


async def _creates_only(store: ProbedStore, key: str) -> None:
    _promise(await store.put_if_absent(key, b"1"), "a fresh key could not be created")
    _promise(not await store.put_if_absent(key, b"2"), "a key could be created twice")
    _promise(await _data(store, key) == b"1", "a refused creation replaced what was there")


async def _replaces_conditionally(store: ProbedStore, key: str) -> None:
    first = await store.compare_and_swap(key, b"1", None)
    await store.compare_and_swap(key, b"2", first)
    for stale in (first, None):
        try:
            await store.compare_and_swap(key, b"3", stale)
        except Aborted:
            continue
        raise _Broken("what had changed meanwhile was replaced all the same")
    _promise(await _data(store, key) == b"2", "a refused replacement was made all the same")


async def _reads_what_was_written(store: ProbedStore, key: str) -> None:
    async def whole(data: bytes) -> AsyncIterator[bytes]:
        yield data

    await store.put_stream(key, whole(b"1"))
    _promise(await _data(store, key) == b"1", "what was written was not there at once")
    await store.put_stream(key, whole(b"2"))
    _promise(await _data(store, key) == b"2", "after replacing, the old bytes were read")
    await store.delete(key)
    _promise(await _data(store, key) is None, "after deleting, the bytes were read")


async def _lists_what_was_written(store: ProbedStore, key: str) -> None:
    names = [key, f"{key}-2"]
    for name in reversed(names):
        await store.put_if_absent(name, b"")
    folder = key.rpartition("/")[0] + "/"

    async def listed() -> list[str]:
        return [info.key for info in await store.list_objects(folder) if info.key in names]

    _promise(await listed() == names, "what was written was not listed at once, in order")
    await store.delete(names[1])
    _promise(await listed() == names[:1], "after deleting, the key was listed")


async def _streams(store: ProbedStore, key: str) -> None:
    async def chunks(size: int, *, torn: bool = False) -> AsyncIterator[bytes]:
        for start in range(0, size, MIB):
            yield bytes(min(MIB, size - start))
        if torn:
            raise _Torn

    try:
        await store.put_stream(key, chunks(STREAM_BYTES, torn=True))
    except _Torn:
        _promise(await _size(store, key) is None, "a torn upload was visible")
    else:
        raise _Broken("a torn upload went through")
    await store.put_stream(key, chunks(STREAM_BYTES))
    _promise(await _size(store, key) == STREAM_BYTES, "an upload in parts was not whole")


class _Torn(Exception):
    """An upload that breaks off."""


async def _size(store: ObjectStore, key: str) -> int | None:
    folder = key.rpartition("/")[0] + "/"
    sizes = {info.key: info.size for info in await store.list_objects(folder)}
    return sizes.get(key)


async def _reads_ranges(store: ProbedStore, key: str) -> None:
    await store.put_if_absent(key, b"0123456789")
    found = await store.get_range(key, 3, 4)
    _promise(found == b"3456", "another part was given than was asked for")


_TRIALS: Mapping[Capability, Trial] = {
    Capability.CREATE_ONLY: _creates_only,
    Capability.CONDITIONAL_REPLACE: _replaces_conditionally,
    Capability.READ_AFTER_WRITE: _reads_what_was_written,
    Capability.LIST_AFTER_WRITE: _lists_what_was_written,
    Capability.STREAMED_WRITES: _streams,
    Capability.RANGE_READS: _reads_ranges,
}


async def _versioning(store: ProbedStore) -> CapabilityReport:
    try:
        granted = await store.versioned()
    except FailedPrecondition as error:
        return CapabilityReport(Capability.VERSIONING, granted=False, detail=error.message)
    why = "" if granted else "what is overwritten or deleted is gone"
    return CapabilityReport(Capability.VERSIONING, granted, why)
