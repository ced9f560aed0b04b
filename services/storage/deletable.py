"""What records share that stay once deleted, and say so."""

from __future__ import annotations

from typing import TypeVar

from services.storage.documents import Documents, Stored, load_page
from services.storage.quota import every_object
from services.storage.records import Deletable
from smile import pages
from smile.errors import NotFound
from smile.store.objects import ObjectStore

R = TypeVar("R", bound=Deletable)
_SUFFIX = ".json"


def live(stored: Stored[R] | None, name: object) -> Stored[R]:
    """Raises `NotFound` where there is none, or it is deleted."""
    if stored is None or stored.document.deleted is not None:
        raise NotFound(f"{name} does not exist", metadata={"resource": str(name)})
    return stored


def deleted_by(record: Deletable, request_id: str) -> bool:
    """Whether this request has deleted it, or what had its name before."""
    return any(
        deletion is not None and deletion.request_id == request_id
        for deletion in (record.deleted, record.predecessor)
    )


async def list_live(
    store: ObjectStore, folder: str, kind: type[R], size: int, token: str
) -> tuple[list[tuple[str, R]], str]:
    """A page of the records in `folder` that are not deleted, by id, and the token of the next."""
    after = pages.place_of(token, folder)
    documents = Documents(store)
    ids = [
        info.key.removeprefix(folder).removesuffix(_SUFFIX)
        async for info in every_object(store, folder)
    ]

    async def load(each: str) -> R | None:
        stored = await documents.read(f"{folder}{each}{_SUFFIX}", kind)
        return stored.document if stored and stored.document.deleted is None else None

    found, more = await load_page([each for each in sorted(ids) if each > after], load, size)
    return found, pages.token_for(folder, found[-1][0]) if more else ""
