"""What a listing tells of one object, and of the time."""

from __future__ import annotations

import uuid
from datetime import datetime

from smile.errors import Unavailable
from smile.store.objects import PROBE_PREFIX, ObjectInfo, ObjectStore

_LISTED_AT_ONCE = 100


async def info_of(store: ObjectStore, key: str) -> ObjectInfo | None:
    """Size and time of an object without its bytes; None where there is none."""
    folder, after = key[: key.rindex("/") + 1], key[:-1]
    while page := await store.list_objects(folder, after=after, limit=_LISTED_AT_ONCE):
        for info in page:
            if info.key == key:
                return info
        if page[-1].key > key:
            return None
        after = page[-1].key
    return None


async def store_time(store: ObjectStore) -> datetime:
    """The time by the clock that dates objects: only that tells how old one is, whatever the clock
    of this process says.

    Raises:
        Unavailable: what was just written is not listed.
    """
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    await store.put_if_absent(key, b"")
    try:
        found = await info_of(store, key)
    finally:
        await store.delete(key)
    if found is None:
        raise Unavailable(f"{key} was written and is not listed", retry_after=1.0)
    return found.modified
