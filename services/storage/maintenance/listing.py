"""What a listing tells of one object."""

from __future__ import annotations

from smile.store.objects import ObjectInfo, ObjectStore

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
