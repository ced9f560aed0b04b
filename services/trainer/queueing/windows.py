"""When jobs that can wait may run: the operator's off-peak windows. Pure; the caller has the clock.

Windows are told in local time, `mon-fri 22:00-06:00, sat-sun 00:00-24:00`: days on which they open,
and from when to when; one that ends no later than it begins ends the day after. Where clocks are
put forward, a time that does not exist is the one just after the gap; where they are put back, a
time that exists twice is the first for an opening and the last for an end, so nothing is cut off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WEEK = timedelta(days=7)
_RULE = re.compile(r"([a-z]{3})(?:-([a-z]{3}))? (\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_MINUTES_MAX = 24 * 60


@dataclass(frozen=True, slots=True)
class Rule:
    """One window on some days; minutes of the local day, `end` up to 1,440."""

    days: frozenset[int]
    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Raises ValueError naming what is wrong."""
        matched = _RULE.fullmatch(text)
        if matched is None:
            raise ValueError(f"a window is like 'mon-fri 22:00-06:00', got '{text[:80]}'")
        first, last, *clock = matched.groups()
        for day in filter(None, (first, last)):
            if day not in DAYS:
                raise ValueError(f"days are {', '.join(DAYS)}, got '{day}' in '{text}'")
        begins = DAYS.index(first)
        count = (DAYS.index(last or first) - begins) % len(DAYS) + 1
        start, end = (_minutes(clock[at], clock[at + 1], text) for at in (0, 2))
        if start == _MINUTES_MAX:
            raise ValueError(f"a window begins before 24:00, got '{text}'")
        days = frozenset((begins + more) % len(DAYS) for more in range(count))
        return cls(days, start, end)


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a place. At least one rule."""

    rules: Sequence[Rule]
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str, zone: str) -> Windows:
        """Rules with commas between them. Raises ValueError."""
        try:
            found = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"no time zone '{zone[:80]}'; one is 'Europe/Berlin'") from error
        rules = tuple(Rule.parse(part.strip()) for part in text.split(",") if part.strip())
        if not rules:
            raise ValueError("at least one window is needed, like 'mon-sun 22:00-06:00'")
        return cls(rules, found)

    def open_at(self, moment: datetime) -> bool:
        """Whether a moment lies in a window; the end does not."""
        return self.closes_at(moment) is not None

    def closes_at(self, moment: datetime) -> datetime | None:
        """When the window a moment lies in ends, a fortnight on at the latest; None outside."""
        for opens, closes in self._spans(moment):
            if opens <= moment < closes:
                return closes
        return None

    def opens_at(self, moment: datetime) -> datetime:
        """The moment itself inside a window, else when the next one begins."""
        for opens, closes in self._spans(moment):
            if moment < closes:
                return max(opens, moment)
        raise AssertionError("rules repeat every week")

    def after(self, moment: datetime, wait: timedelta) -> datetime:
        """When so much time inside windows will have passed."""
        for _ in range(10_000):
            opens = self.opens_at(moment)
            closes = self.closes_at(opens)
            assert closes is not None, "it opens there"
            if wait < closes - opens:
                return opens + wait
            wait -= closes - opens
            moment = closes
        return moment

    def _spans(self, moment: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Windows around a moment in order of time, in UTC; those that touch or overlap are one."""
        today = moment.astimezone(self.zone).date()
        days = [today + timedelta(days=more) for more in range(-8, 15)]
        spans = sorted(span for day in days for span in self._of_day(day))
        merged: tuple[datetime, datetime] | None = None
        for opens, closes in spans:
            if merged is not None and opens <= merged[1]:
                merged = merged[0], max(merged[1], closes)
                continue
            if merged is not None:
                yield merged
            merged = opens, closes
        if merged is not None:
            yield merged

    def _of_day(self, day: date) -> Iterator[tuple[datetime, datetime]]:
        for rule in self.rules:
            if day.weekday() not in rule.days:
                continue
            later = day if rule.end > rule.start else day + timedelta(days=1)
            opens = self._utc(day, rule.start, fold=0)
            closes = self._utc(later, rule.end, fold=1)
            if opens < closes:  # one that lies in a gap is not at all
                yield opens, closes

    def _utc(self, day: date, minutes: int, *, fold: int) -> datetime:
        if minutes == _MINUTES_MAX:
            day, minutes = day + timedelta(days=1), 0
        local = datetime.combine(day, time(minutes // 60, minutes % 60, fold=fold), self.zone)
        moment = local.astimezone(UTC)
        if moment.astimezone(self.zone).replace(tzinfo=None) == local.replace(tzinfo=None):
            return moment
        return self._gap_end(local)

    def _gap_end(self, local: datetime) -> datetime:
        """The first moment after the gap that a local time lies in."""
        before = local.replace(fold=1).astimezone(UTC)  # by the offset after the change: too early
        after = local.replace(fold=0).astimezone(UTC)
        offset = after.astimezone(self.zone).utcoffset()
        while after - before > timedelta(seconds=1):
            middle = before + (after - before) / 2
            if middle.astimezone(self.zone).utcoffset() == offset:
                after = middle
            else:
                before = middle
        return after.replace(microsecond=0)


def _minutes(hours: str, minutes: str, text: str) -> int:
    total = int(hours) * 60 + int(minutes)
    if int(minutes) >= 60 or total > _MINUTES_MAX:
        raise ValueError(f"times are 00:00 to 24:00, got '{text}'")
    return total
