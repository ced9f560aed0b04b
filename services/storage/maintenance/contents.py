"""Whether bytes are those that were stored, each looked at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from services.storage.blobs import Declared, verified
from services.storage.listing import info_of
from services.storage.maintenance.places import Place
from services.storage.maintenance.work import Work
from smile.errors import DataCorrupted, InvalidSpec
from smile.maintenance import FindingKind
from smile.store.objects import ObjectInfo, ObjectStore


class Contents:
    """Reads bytes that records point to.

    Args:
        held: What the store was seen to hold.
        unread: Look only at whether bytes are there, and how many.
    """

    def __init__(
        self, store: ObjectStore, work: Work, held: Mapping[str, ObjectInfo], *, unread: bool
    ) -> None:
        self._store = store
        self._work = work
        self._held = held
        self._unread = unread
        self._faults: dict[str, asyncio.Future[FindingKind | None]] = {}

    def named(self, key: str) -> bool:
        """Whether something points there."""
        return key in self._faults

    async def there(self, key: str) -> bool:
        """Whether there is something now."""
        return await info_of(self._store, key) is not None

    async def fault(
        self, place: Place, declared: Declared, check: Callable[[bytes], object] | None = None
    ) -> FindingKind | None:
        """What is wrong with bytes. `check` gets them whole; it raises if they are no module."""
        if place.key not in self._faults:
            self._faults[place.key] = asyncio.ensure_future(self._look(place, declared, check))
        return await self._faults[place.key]

    async def _look(
        self, place: Place, declared: Declared, check: Callable[[bytes], object] | None
    ) -> FindingKind | None:
        info = self._held.get(place.key)
        if self._unread and info is not None:
            return None if info.size == declared.size_bytes else FindingKind.DIGEST_MISMATCH
        data = bytearray()
        try:
            async for chunk in verified(self._store.get_stream(place.key), declared, place.key):
                self._work.looked(0, len(chunk))
                if check is not None:
                    data += chunk
        except DataCorrupted as error:
            missing = error.reason == "BLOB_MISSING"
            return FindingKind.BLOB_MISSING if missing else FindingKind.DIGEST_MISMATCH
        if check is not None:
            try:
                await asyncio.to_thread(check, bytes(data))
            except (DataCorrupted, InvalidSpec):
                return FindingKind.MODULE_INVALID
        return None
