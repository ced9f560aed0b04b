"""What a hub hands on, and when it ends its streams."""

from __future__ import annotations

import pytest

from services.storage.feed import hub as hubs
from services.storage.feed.hub import Beat, Changed, Hub
from smile.errors import Unavailable
from smile.testing import FakeClock

pytestmark = pytest.mark.asyncio


def listening(clock: FakeClock) -> Hub:
    hub = Hub(clock, doubt_s=10.0)
    hub.listen()
    return hub


async def test_nobody_watches_what_is_not_heard() -> None:
    clock = FakeClock()
    hub = Hub(clock, doubt_s=10.0)
    with pytest.raises(Unavailable, match="lost its thread"):
        hub.watch()
    hub.changed("a")
    hub.beat(0.0)
    assert not hub.live


async def test_watchers_hear_in_order_what_is_said_after_they_came() -> None:
    clock = FakeClock()
    hub = listening(clock)
    watcher = hub.watch()
    hub.changed("a")
    hub.beat(3.0)
    hub.changed("b")
    assert [await watcher.next() for _ in range(3)] == [Changed("a"), Beat(3.0), Changed("b")]


async def test_who_comes_is_told_what_was_said_lately_and_for_how_long_all_was_heard() -> None:
    clock = FakeClock()
    hub = listening(clock)
    clock.advance(5.0)
    hub.changed("old")
    clock.advance(9.0)
    hub.changed("new")
    hub.changed("new")
    assert hub.watch().opened.names == ("old", "new")
    clock.advance(2.0)
    assert hub.watch().opened == hubs.Opened(("new",), 16.0)


async def test_too_many_names_count_as_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "RECENT_MAX", 3)
    clock = FakeClock()
    hub = listening(clock)
    for number in range(5):
        clock.advance(1.0)
        hub.changed(f"n{number}")
    assert hub.watch().opened == hubs.Opened(("n2", "n3", "n4"), 3.0)


@pytest.mark.parametrize("end", ["lose", "listen", "close"])
async def test_a_gap_ends_all_streams_at_once(end: str) -> None:
    hub = listening(FakeClock())
    watcher = hub.watch()
    hub.changed("a")
    getattr(hub, end)()
    with pytest.raises(Unavailable):
        await watcher.next()
    assert hub.live is (end == "listen")


async def test_who_does_not_keep_up_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "PARTS_MAX", 3)
    hub = listening(FakeClock())
    slow, quick = hub.watch(), hub.watch()
    for number in range(4):
        hub.beat(float(number))
        assert await quick.next() == Beat(float(number))
    with pytest.raises(Unavailable):
        await slow.next()


async def test_mistrust_pauses_the_feed() -> None:
    clock = FakeClock()
    hub = listening(clock)
    watcher = hub.watch()
    hub.mistrust(30.0)
    with pytest.raises(Unavailable):
        await watcher.next()
    clock.advance(29.0)
    with pytest.raises(Unavailable):
        hub.watch()
    clock.advance(2.0)
    assert hub.watch().opened.listened_s == 31.0
