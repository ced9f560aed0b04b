"""Where running jobs are, so that another worker goes on: one object per job and fence.

A worker writes under its own fence alone, so one that lost its lease overwrites nothing of its
heirs'; whoever reads takes the highest. Lower ones go with the next write, all with the job's end.
A checkpoint begins with the SHA-256 of what follows it, which is all that storage knows of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from services.storage import keys
from services.storage.blobs import Declared, checked
from services.storage.quota import every_object
from smile.errors import NotFound
from smile.names import JobName
from smile.store.objects import ObjectStore

CHECKPOINT_DIGEST_BYTES = 32

MayWrite = Callable[[JobName, int], Awaitable[None]]


class Checkpoints:
    """Checkpoints of jobs. `may_write` raises if a fence may not write to a job (any more)."""

    def __init__(self, store: ObjectStore, may_write: MayWrite) -> None:
        self._store = store
        self._may_write = may_write

    async def put(
        self, name: JobName, fence: int, declared: Declared, chunks: AsyncIterator[bytes]
    ) -> None:
        """Keep a checkpoint in place of the ones before.

        Raises:
            InvalidArgument: the bytes are not what was declared.
            NotFound, Aborted, FailedPrecondition: as `may_write`; nothing is kept.
        """
        await self._may_write(name, fence)
        key = keys.checkpoint(name, fence)
        await self._store.put_stream(key, checked(chunks, declared))
        try:
            await self._may_write(name, fence)
        except Exception:  # the job ended or went to another meanwhile
            await self._store.delete(key)
            raise
        await self.discard(name, below=key)

    async def get(self, name: JobName) -> AsyncIterator[bytes]:
        """The bytes of the latest checkpoint; nothing where there is none."""
        found = [info.key async for info in every_object(self._store, keys.checkpoints(name))]
        if not found:
            return
        try:
            async for chunk in self._store.get_stream(max(found)):
                yield chunk
        except NotFound:  # replaced or discarded meanwhile
            return

    async def discard(self, name: JobName, *, below: str | None = None) -> None:
        """Remove a job's checkpoints; with `below`, those of lower fences alone."""
        async for info in every_object(self._store, keys.checkpoints(name)):
            if below is None or info.key < below:
                await self._store.delete(info.key)
