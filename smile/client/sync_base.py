"""What the sync face has besides the generated methods: its loop, its beginning and its end."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from smile.client.client import AsyncClient
from smile.client.loop import LoopThread
from smile.client.settings import Endpoints


class SyncBase:
    """Makes, holds and closes an `AsyncClient` and its loop. Errors: as for `AsyncClient`."""

    def __init__(
        self, api_key: str | None = None, *, endpoints: Endpoints | str | None = None
    ) -> None:
        self._client = AsyncClient(api_key, endpoints=endpoints)
        self._loop = LoopThread()
        self._closed = False

    @property
    def tenant(self) -> str | None:
        """Whose key it is; None for the operator's."""
        return self._client.tenant

    def close(self) -> None:
        """Close the connection and the loop; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._loop.call(lambda _: self._client.close())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
