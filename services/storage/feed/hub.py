"""What one replica has heard, and who is told of it. Decides; knows neither Redis nor gRPC.

The order of what is heard is the order in which all replicas spoke, and watchers get it in that
order. A beat is this replica's own word that came back: everything said before it has been heard.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from smile.errors import Unavailable

FEED_LOST = "CHANGE_FEED_LOST"
RECENT_MAX = 5_000  # names kept for those who come
PARTS_MAX = 10_000  # that wait for one watcher


@dataclass(frozen=True, slots=True)
class Opened:
    """What a watcher begins with: names told of lately, and for how long all were heard."""

    names: tuple[str, ...]
    listened_s: float


@dataclass(frozen=True, slots=True)
class Changed:
    """Something changes, or has changed."""

    name: str


@dataclass(frozen=True, slots=True)
class Beat:
    """All that was said before `at` has been told."""

    at: float


Part = Changed | Beat


class Watcher:
    """One stream's share: what it has yet to tell."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self._parts: asyncio.Queue[Part | None] = asyncio.Queue(PARTS_MAX + 1)
        self._ended = False

    def put(self, part: Part) -> None:
        """Tell `part` next; a watcher that does not keep up is ended."""
        if self._ended:
            return
        if self._parts.qsize() >= PARTS_MAX:
            self.end()
        else:
            self._parts.put_nowait(part)

    def end(self) -> None:
        """Tell nothing more; it is as if nothing that still waits had been heard."""
        self._ended = True
        if self._parts.full():
            self._parts.get_nowait()
        self._parts.put_nowait(None)

    async def next(self) -> Part:
        """What comes next. Raises `Unavailable` once something may have been missed."""
        part = await self._parts.get()
        if self._ended or part is None:
            raise lost()
        return part


@dataclass(slots=True)
class _Listening:
    """A subscription: since when all is heard, and what was heard lately with its time."""

    since: float
    recent: deque[tuple[float, str]] = field(default_factory=deque)


class Hub:
    """Hands on what is heard. For use on the event loop only.

    Args:
        clock: Monotonic seconds.
        doubt_s: No change takes longer, from the time it is first told of.
    """

    def __init__(self, clock: Callable[[], float], doubt_s: float) -> None:
        self.clock = clock
        self.doubt_s = doubt_s
        self._listening: _Listening | None = None
        self._silent_until = float("-inf")
        self._watchers: set[Watcher] = set()

    @property
    def live(self) -> bool:
        """Whether there is something to watch."""
        return self._listening is not None and self.clock() >= self._silent_until

    def listen(self) -> None:
        """From now on everything said is heard."""
        self._end_watchers()
        self._listening = _Listening(self.clock())

    def lose(self) -> None:
        """Something said may not be heard from now on."""
        self._end_watchers()
        self._listening = None

    def mistrust(self, seconds: float) -> None:
        """For so long someone may change things without a word."""
        self._end_watchers()
        self._silent_until = max(self._silent_until, self.clock() + seconds)

    def changed(self, name: str) -> None:
        """Heard of a change."""
        if self._listening is None:
            return
        now = self.clock()
        self._forget_old(self._listening, now)
        if len(self._listening.recent) >= RECENT_MAX:  # it is as if listening had begun later
            self._listening.since = self._listening.recent.popleft()[0]
        self._listening.recent.append((now, name))
        for watcher in self._watchers:
            watcher.put(Changed(name))

    def beat(self, at: float) -> None:
        """Heard what this replica said at `at`."""
        if self.live:
            for watcher in self._watchers:
                watcher.put(Beat(at))

    def watch(self) -> Watcher:
        """A watcher from now on; `leave` when done. Raises `Unavailable` where there is no feed."""
        listening = self._listening
        if listening is None or not self.live:
            raise lost()
        now = self.clock()
        self._forget_old(listening, now)
        names = tuple(dict.fromkeys(name for _, name in listening.recent))
        watcher = Watcher(Opened(names, now - listening.since))
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Nobody takes what `watcher` has any more."""
        self._watchers.discard(watcher)

    def close(self) -> None:
        """End all streams for good, so that none holds up a shutdown."""
        self.mistrust(float("inf"))

    def _end_watchers(self) -> None:
        for watcher in self._watchers:
            watcher.end()
        self._watchers.clear()

    def _forget_old(self, listening: _Listening, now: float) -> None:
        """Drop names whose changes are over."""
        recent = listening.recent
        while recent and now - recent[0][0] > self.doubt_s:
            recent.popleft()


def lost() -> Unavailable:
    """The answer where something may have been missed."""
    return Unavailable(
        "the change feed has lost its thread; watch it anew", reason=FEED_LOST, retry_after=0.5
    )
