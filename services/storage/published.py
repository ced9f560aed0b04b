"""What records of things that operators publish share: one that is deleted stays, and says so."""

from __future__ import annotations

from typing import TypeVar

from services.storage.documents import Stored
from services.storage.records import Deletable
from smile.errors import NotFound

R = TypeVar("R", bound=Deletable)


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
