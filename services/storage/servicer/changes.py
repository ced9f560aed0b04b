"""`ChangeFeedService`: tells watchers what changes, as this replica hears it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from services.storage.feed.hub import Changed, Hub, Part
from smile.errors import FailedPrecondition
from smile.v1 import changes_pb2, changes_pb2_grpc

FULL_NAME = "smile.v1.ChangeFeedService"

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class ChangeFeedServicer(changes_pb2_grpc.ChangeFeedServiceServicer):
    """Encodes what a hub tells; None where there is no feed."""

    def __init__(self, hub: Hub | None) -> None:
        self._hub = hub

    async def WatchChanges(
        self, request: changes_pb2.WatchChangesRequest, context: Context
    ) -> AsyncIterator[changes_pb2.WatchChangesResponse]:
        if self._hub is None:
            raise FailedPrecondition(
                "this storage has no change feed: SMILE_STORAGE_REDIS_URL is not set",
                reason="CHANGE_FEED_OFF",
            )
        begun = self._hub.clock()
        watcher = self._hub.watch()
        try:
            opened = changes_pb2.FeedOpened(
                names=watcher.opened.names,
                listened_ms=int(watcher.opened.listened_s * 1e3),
                doubt_ms=int(self._hub.doubt_s * 1e3) + 1,
            )
            yield changes_pb2.WatchChangesResponse(opened=opened)
            while True:
                if (response := _encoded(await watcher.next(), begun)) is not None:
                    yield response
        finally:
            self._hub.leave(watcher)


def _encoded(part: Part, begun: float) -> changes_pb2.WatchChangesResponse | None:
    """`part` as a message; None for a beat begun before the stream, which says nothing new."""
    if isinstance(part, Changed):
        changed = changes_pb2.FeedChanged(names=[part.name])
        return changes_pb2.WatchChangesResponse(changed=changed)
    if part.at < begun:
        return None
    beat = changes_pb2.FeedBeat(elapsed_ms=int((part.at - begun) * 1e3))
    return changes_pb2.WatchChangesResponse(beat=beat)
