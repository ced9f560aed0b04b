"""Who is told before and after something changes that others may remember."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol


class Announcer(Protocol):
    """Tells of changes. Whatever changes what ResolveAlias, GetVersion or ResolveApiKey answer to a
    question that had an answer must do so inside of `changing`."""

    def changing(self, name: str) -> AbstractAsyncContextManager[None]:
        """Tell that `name` changes, before what is inside and again after it.

        Raises:
            Unavailable: nobody can be told, nor warned of that; nothing inside was done.
        """
        ...


class Unannounced:
    """Tells nobody: without a feed, answers are remembered for a time to live only."""

    def changing(self, name: str) -> AbstractAsyncContextManager[None]:
        return nullcontext()
