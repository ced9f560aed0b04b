"""Off-peak windows: parsed, and right also on the days on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.queueing.windows import WEEK, Windows

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC")
TEXTS = (
    "mon-fri 22:00-06:00",
    "mon-sun 22:00-06:00",
    "sat-sun 00:00-24:00, mon-fri 01:30-02:45",
    "sun 02:00-03:00",
    "fri-mon 20:15-04:00",
    "wed 12:00-12:00",
)
MOMENTS = st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))
WINDOWS = st.builds(Windows.parse, st.sampled_from(TEXTS), st.sampled_from(ZONES))
BERLIN = ZoneInfo("Europe/Berlin")


def local(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "at least one window"),
        ("mon", "like 'mon-fri 22:00-06:00', got 'mon'"),
        ("mon 6:00-7:00", "got 'mon 6:00-7:00'"),
        ("day 06:00-07:00", "days are mon, tue"),
        ("mon 06:60-07:00", "times are 00:00 to 24:00"),
        ("mon 06:00-24:01", "times are 00:00 to 24:00"),
        ("mon 24:00-06:00", "begins before 24:00"),
    ],
)
def test_what_is_wrong_with_a_window_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Windows.parse(text, "UTC")


@pytest.mark.parametrize("zone", ["Nowhere/Land", "", "../etc/passwd", "Europe"])
def test_a_zone_must_exist(zone: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Windows.parse("mon 06:00-07:00", zone)


def test_a_night_ends_in_the_morning() -> None:
    windows = Windows.parse("mon-fri 22:00-06:00", "Europe/Berlin")
    friday = local("2026-11-20 23:00")
    assert windows.closes_at(friday) == local("2026-11-21 06:00")
    assert windows.open_at(local("2026-11-21 05:59"))
    assert not windows.open_at(local("2026-11-21 06:00"))
    assert windows.opens_at(local("2026-11-21 06:00")) == local("2026-11-23 22:00")


def test_windows_that_touch_are_one() -> None:
    windows = Windows.parse("fri 22:00-24:00, sat-sun 00:00-24:00", "Europe/Berlin")
    assert windows.closes_at(local("2026-11-20 22:00")) == local("2026-11-23 00:00")
    always = Windows.parse("mon-sun 00:00-24:00", "UTC")
    closes = always.closes_at(local("2026-11-20 22:00"))
    assert closes is not None
    assert closes > local("2026-11-20 22:00") + WEEK


def test_the_night_of_spring_is_an_hour_shorter_and_that_of_autumn_longer() -> None:
    windows = Windows.parse("mon-sun 22:00-06:00", "Europe/Berlin")
    for day, hours in (("2026-03-28", 7), ("2026-03-29", 8), ("2026-10-24", 9), ("2026-10-25", 8)):
        opens = local(f"{day} 22:00").astimezone(UTC)
        closes = windows.closes_at(opens)
        assert closes is not None
        assert closes - opens == timedelta(hours=hours)
        assert closes.astimezone(BERLIN).hour == 6


def test_an_opening_in_the_gap_is_just_after_it() -> None:
    """On 29 March 2026 Berlin has no 02:30; 03:00 follows 02:00."""
    windows = Windows.parse("sun 02:30-04:00", "Europe/Berlin")
    before = local("2026-03-29 01:00")
    assert windows.opens_at(before) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    assert windows.closes_at(windows.opens_at(before)) == datetime(2026, 3, 29, 2, 0, tzinfo=UTC)


def test_a_window_within_the_gap_is_not_that_day() -> None:
    windows = Windows.parse("sun 02:10-02:50", "Europe/Berlin")
    assert windows.opens_at(local("2026-03-29 00:00")) == local("2026-04-05 02:10")


def test_an_hour_that_comes_twice_is_wholly_inside() -> None:
    """On 25 October 2026 Berlin has 02:00 to 03:00 twice: nothing is cut off."""
    windows = Windows.parse("sun 02:15-02:45", "Europe/Berlin")
    opens = windows.opens_at(local("2026-10-25 00:00"))
    assert opens == local("2026-10-25 02:15", fold=0).astimezone(UTC)
    closes = windows.closes_at(opens)
    assert closes is not None
    assert closes == local("2026-10-25 02:45", fold=1).astimezone(UTC)
    assert closes - opens == timedelta(hours=1, minutes=30)


@settings(deadline=None, max_examples=60)
@given(WINDOWS, MOMENTS)
def test_openings_and_ends_agree(windows: Windows, moment: datetime) -> None:
    opens = windows.opens_at(moment)
    assert moment <= opens <= moment + WEEK + timedelta(days=1)
    assert windows.open_at(opens)
    assert windows.open_at(moment) == (opens == moment)
    closes = windows.closes_at(opens)
    assert closes is not None
    assert opens < closes
    assert windows.open_at(closes - timedelta(seconds=1))
    if closes < opens + WEEK:
        assert not windows.open_at(closes)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ZONES), MOMENTS)
def test_a_moment_is_inside_by_the_clock_on_the_wall(zone: str, moment: datetime) -> None:
    """An independent look at the local clock, whatever the offset is."""
    windows = Windows.parse("mon-sun 22:00-06:00", zone)
    hour = moment.astimezone(ZoneInfo(zone)).hour
    assert windows.open_at(moment) == (hour >= 22 or hour < 6)


@settings(deadline=None, max_examples=40)
@given(WINDOWS, MOMENTS, st.integers(0, 200_000), st.integers(0, 200_000))
def test_waiting_is_counted_inside_windows_alone(
    windows: Windows, moment: datetime, first_s: int, second_s: int
) -> None:
    first, second = timedelta(seconds=first_s), timedelta(seconds=second_s)
    reached = windows.after(moment, first)
    assert windows.open_at(reached)
    assert reached >= windows.opens_at(moment) + first
    assert windows.after(reached, second) == windows.after(moment, first + second)
