"""The backbones that vPLMs can be built on: read once, in the background, without torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from smile.errors import InvalidArgument, NotFound, SmileError, Unavailable
from smile.limits import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from smile.logs import get_logger
from smile.model.sources import BackboneInfo, BackboneSource, describe
from smile.names import BackboneName
from smile.resources import Backbone

CHECK = "backbones"
RETRY_S_MAX = 30.0


class Catalogue:
    """Backbones by name, complete once `load` has ended.

    Args:
        sources: The backbones to offer, names unique.
        describer: Reads one backbone's directory: shape, family and digest (of every byte of the
            weights, so it takes about a second per GB; it runs in a thread).
    """

    def __init__(
        self,
        sources: Sequence[BackboneSource],
        describer: Callable[[Path], BackboneInfo] = describe,
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._describer = describer
        self._found: dict[str, Backbone] = {}

    async def load(self, *, retry_s: float, ready: Callable[[str | None], None]) -> None:
        """Read every backbone, trying again until each has been read.

        `ready` is called after each round: with what is still missing and why, or None at the end.
        """
        delay_s = retry_s
        while True:
            faults = [fault for name in self._missing() if (fault := await self._read(name))]
            ready("; ".join(faults) or None)
            if not faults:
                return
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_S_MAX)

    def get(self, name: BackboneName) -> Backbone:
        """The backbone called `name`.

        Raises:
            NotFound: the platform offers no such backbone.
            Unavailable: it does, and has not read it yet.
        """
        found = self._found.get(name.backbone)
        if found is not None:
            return found
        if name.backbone in self._sources:
            raise Unavailable(f"{name} is still being read, try again soon", retry_after=1.0)
        offered = ", ".join(sorted(self._sources))
        raise NotFound(f"{name} does not exist; there are: {offered}")

    def page(self, page_size: int, page_token: str) -> tuple[list[Backbone], str]:
        """Up to `page_size` backbones after the one `page_token` names, and the next page's token.

        Raises:
            InvalidArgument: the token is not one this catalogue gave.
        """
        if page_token and page_token not in self._sources:
            raise InvalidArgument(
                "page_token is not one that ListBackbones gave", reason="PAGE_TOKEN_INVALID"
            )
        size = min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        names = [name for name in sorted(self._found) if name > page_token]
        shown = names[:size]
        token = shown[-1] if len(names) > size else ""
        return [self._found[name] for name in shown], token

    def _missing(self) -> list[str]:
        return [name for name in self._sources if name not in self._found]

    async def _read(self, name: str) -> str | None:
        """Read one backbone; what is wrong with it, if anything."""
        source = self._sources[name]
        try:
            info = await asyncio.to_thread(self._describe, source)
        except SmileError as error:
            return error.message
        except OSError as error:
            return f"backbone '{name}' cannot be read: {error.strerror or type(error).__name__}"
        self._found[name] = Backbone(
            str(BackboneName(name)), str(info.family), info.digest, info.shape
        )
        get_logger().info("backbone ready", backbone=name, digest=info.digest)
        return None

    def _describe(self, source: BackboneSource) -> BackboneInfo:
        return self._describer(source.locate())
