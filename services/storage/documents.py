"""Documents in the object store: read, create, and change without losing an update."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import pydantic

from services.storage import keys
from services.storage.records import Document
from smile.errors import Aborted, DataCorrupted, SmileError
from smile.limits import MESSAGE_BYTES_MAX
from smile.logs import get_logger
from smile.store.objects import ObjectStore, Reading

EDIT_ATTEMPTS_MAX = 30
EDIT_WAIT_S_MAX = 0.05
READS_AT_ONCE = 16
PAGE_BYTES_MAX = (
    3 * MESSAGE_BYTES_MAX // 8
)  # of the items as text, which is no less than on the wire

D = TypeVar("D", bound=Document)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored(Generic[D]):
    """A document as it was read, and the tag that changes with it."""

    document: D
    etag: str


class Documents:
    """JSON documents over an object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def read(self, key: str, kind: type[D]) -> Stored[D] | None:
        """The document at `key`.

        Raises:
            DataCorrupted: what is there is no such document.
        """
        return await self._store.read(self.reading(key, kind))

    def reading(self, key: str, kind: type[D]) -> Reading[Stored[D] | None]:
        """As `read`, among other objects that are read one after another."""
        found = yield key
        if found is None:
            return None
        try:
            return Stored(kind.model_validate_json(found.data), found.etag)
        except (pydantic.ValidationError, SmileError) as error:
            raise _corrupted(key) from error

    async def create(self, key: str, document: Document) -> bool:
        """Write a document; False where there is another already.

        Clients of object stores write again where an answer is lost, and are told of their own
        object then: one that is this document to the byte is it.
        """
        data = _encoded(document)
        if await self._store.put_if_absent(key, data):
            return True
        found = await self._store.get(key)
        return found is not None and found.data == data

    async def swap(self, key: str, document: Document, etag: str | None) -> str:
        """Replace the document tagged `etag` (None: there is none yet). Raises `Aborted`."""
        return await self._store.compare_and_swap(key, _encoded(document), etag)

    async def edit(
        self,
        key: str,
        kind: type[D],
        change: Callable[[Stored[D] | None], D | None],
        around: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> Stored[D]:
        """Apply `change` to the document until no one else changes it meanwhile.

        `change` gets what is stored and gives what shall be (None: nothing to do); it may raise.
        Each attempt to write is made inside of `around`.
        """
        for _ in range(EDIT_ATTEMPTS_MAX):
            stored = await self.read(key, kind)
            wanted = change(stored)
            if wanted is None:
                assert stored is not None
                return stored
            try:
                async with around():
                    etag = await self.swap(key, wanted, stored.etag if stored else None)
            except Aborted:
                await asyncio.sleep(random.uniform(0, EDIT_WAIT_S_MAX))  # noqa: S311
                continue
            return Stored(wanted, etag)
        raise Aborted(
            f"others changed this {EDIT_ATTEMPTS_MAX} times in a row; try again", retry_after=0.5
        )

    async def delete(self, key: str) -> None:
        await self._store.delete(key)


async def load_page(
    names: Sequence[str],
    load: Callable[[str], Awaitable[T | None]],
    size: int,
    *,
    bytes_max: int | None = PAGE_BYTES_MAX,
) -> tuple[list[tuple[str, T]], bool]:
    """Up to `size` of the things that `names` name, and whether there are more.

    A page ends early where it would not fit into one message. `load` gives None for what is not
    there after all. What is corrupted is logged and left out, so that one bad record does not hide
    the others.
    """
    found: list[tuple[str, T]] = []
    written = 0
    for start in range(0, len(names), READS_AT_ONCE):
        batch = names[start : start + READS_AT_ONCE]
        loaded = await asyncio.gather(*(_load(load, name) for name in batch))
        for name, item in zip(batch, loaded, strict=True):
            if item is None:
                continue
            if len(found) == size:
                return found, True
            written += len(repr(item).encode()) if bytes_max is not None else 0
            if bytes_max is not None and found and written > bytes_max:
                return found, True
            found.append((name, item))
    return found, False


async def _load(load: Callable[[str], Awaitable[T | None]], name: str) -> T | None:
    try:
        return await load(name)
    except DataCorrupted as error:
        get_logger().error("left a corrupted record out of a listing", why=error.message)
        return None


def stored_bytes(*documents: Document) -> int:
    """Bytes that these take in the store."""
    return sum(len(_encoded(document)) for document in documents)


def _encoded(document: Document) -> bytes:
    return document.model_dump_json(by_alias=True).encode()


def _corrupted(key: str) -> DataCorrupted:
    resource = keys.resource(key)
    return DataCorrupted(
        f"the record of {resource} cannot be read; restore it from a backup",
        reason="RECORD_CORRUPTED",
        metadata={"resource": resource},
    )
