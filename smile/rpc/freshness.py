"""How fresh a remembered answer is: as of when it was asked for, or as of when a change feed last
said that it still holds. Decides; the feed is followed by `smile.rpc.changes`.

Nobody uses an answer that is older than its time to live. A feed only makes answers younger: one
that holds is as fresh as the feed's last beat, so a feed that stalls or ends lets them age again.

What a feed says holds for an answer that was asked for
* after the feed had opened, and after nothing could still be on its way that was told before it,
* longer after the last change of its name was told of than any change takes, and
* not too long ago, whatever the feed says.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum

CONFIRM_S = 600.0
NAMES_MAX = 100_000
EPOCHS_MAX = 16
DOUBT_S = 60.0


class Lookup(StrEnum):
    """What was asked for, and whether storage had to be asked."""

    ALIAS_REMEMBERED = "alias-remembered"
    ALIAS_ASKED = "alias-asked"
    KEY_REMEMBERED = "key-remembered"
    KEY_ASKED = "key-asked"


@dataclass(slots=True)
class _Epoch:
    """A time in which no change went unheard.

    Attributes:
        since: What was asked for from then on is covered.
        as_of: Every change begun before has been told of.
    """

    since: float
    as_of: float


class Freshness:
    """What a change feed has told. For use on the event loop only; times are of one clock.

    Args:
        confirm_s: An answer is asked for again after so long, whatever the feed says.
        names_max: Names told of that are kept; with more, a new epoch begins.
    """

    def __init__(self, *, confirm_s: float = CONFIRM_S, names_max: int = NAMES_MAX) -> None:
        self.confirm_s = confirm_s
        self._names_max = names_max
        self._epochs: deque[_Epoch] = deque(maxlen=EPOCHS_MAX)
        self._told: OrderedDict[str, float] = OrderedDict()  # names by when last told, oldest first
        self._doubt_s = DOUBT_S
        self.live = False
        self.lookups: Counter[Lookup] = Counter()

    def opened(self, *, since: float, as_of: float, doubt_s: float) -> None:
        """A feed has begun: what is asked for from `since` on is covered by it."""
        self._doubt_s = max(self._doubt_s, doubt_s) if self._epochs else doubt_s
        self._epochs.append(_Epoch(since, as_of))
        self.live = True

    def taken_over(self, *, since: float, doubt_s: float) -> None:
        """Another feed goes on without a gap where this one was: coverage begins with either."""
        self._doubt_s = max(self._doubt_s, doubt_s)
        self._epochs[-1].since = min(self._epochs[-1].since, since)

    def told(self, name: str, now: float) -> None:
        """`name` changes, or has changed."""
        self._told[name] = now
        self._told.move_to_end(name)
        while self._told:
            oldest = next(iter(self._told))
            if now - self._told[oldest] <= self.confirm_s + self._doubt_s:
                break
            del self._told[oldest]
        if len(self._told) > self._names_max:
            self._told.popitem(last=False)
            self._epochs.clear()
            self._epochs.append(_Epoch(now + self._doubt_s, now))

    def beat(self, as_of: float) -> None:
        """Every change begun before `as_of` has been told of."""
        epoch = self._epochs[-1]
        epoch.as_of = max(epoch.as_of, as_of)

    def lost(self) -> None:
        """The feed has ended. What it said before stays true of then."""
        self.live = False

    @property
    def as_of(self) -> float:
        """When the newest feed last said that all is told; never, where there was none."""
        return self._epochs[-1].as_of if self._epochs else float("-inf")

    def fresh_at(self, name: str, asked: float, now: float) -> float:
        """The latest time as of which the answer for `name`, asked for at `asked`, is known to
        hold.
        """
        if now - asked > self.confirm_s:
            return asked
        told = self._told.get(name)
        if told is not None and asked <= told + self._doubt_s:
            return asked
        for epoch in reversed(self._epochs):
            if asked >= epoch.since:
                return max(asked, epoch.as_of)
        return asked

    def outdated(self, name: str, asked: float) -> bool:
        """Whether a change of `name` was told of since its answer was asked for."""
        told = self._told.get(name)
        return told is not None and told >= asked
