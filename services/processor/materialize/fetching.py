"""Fetches local encoders, tables and domains that settings name in storage's catalogue.

A processor never waits long for them: without, every layer is computed. What is missing is tried
again, and used as soon as it is there; tables and domains by whoever looks after rows, who finds
them in their place. What was fetched before serves while storage is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from smile.names import ArtifactName
from smile.rpc.health import Readiness

ARTIFACTS_CHECK = "artifacts"
START_S_MAX = 10.0  # an encoder takes a fraction of that


class Cache(Protocol):
    """Where artifacts come from."""

    async def keep(
        self, names: Sequence[ArtifactName], on_state: Callable[[ArtifactName, str], object]
    ) -> None:
        """Fetches them until cancelled; `on_state` hears why one cannot be had, or empty."""
        ...


class Fetcher:
    """Keeps what settings name at hand.

    Args:
        cache: None: nothing is fetched.
        names: What settings name.
        adopt: Takes in encoders that have come. Blocks.
    """

    def __init__(
        self, cache: Cache | None, names: Sequence[ArtifactName], adopt: Callable[[], object]
    ) -> None:
        self._cache = cache
        self._names = names if cache is not None else ()
        self._adopt = adopt
        self._missing = dict.fromkeys(self._names, "not looked for yet")
        self._looked = asyncio.Event()
        self._came = asyncio.Event()
        self.loaded = asyncio.Event()  # set once backbones are

    async def first(self) -> None:
        """Waits until every name was looked for once, but not long."""
        if not self._names:
            return
        try:
            async with asyncio.timeout(START_S_MAX):
                await self._looked.wait()
        except TimeoutError:
            return  # exact answers do without

    async def run(self, readiness: Readiness) -> None:
        """Until cancelled. What is missing is told as a note of readiness: requests may come."""
        if self._cache is None or not self._names:
            return
        seen: set[ArtifactName] = set()

        def hear(name: ArtifactName, why: str) -> None:
            seen.add(name)
            if why:
                self._missing[name] = why
            elif self._missing.pop(name, None) is not None:
                self._came.set()
            readiness.note(
                ARTIFACTS_CHECK, "; ".join(f"{name}: {why}" for name, why in self._missing.items())
            )
            if len(seen) == len(self._names):
                self._looked.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(self._cache.keep(self._names, hear))
            group.create_task(self._take_in())

    async def _take_in(self) -> None:
        await self.loaded.wait()
        while True:
            await self._came.wait()
            self._came.clear()
            await asyncio.to_thread(self._adopt)
