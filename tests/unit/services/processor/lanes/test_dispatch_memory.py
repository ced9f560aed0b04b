"""The dispatch where memory is short: batches board as far as the device has room."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from services.processor.lanes.dispatch import Dispatch, Work
from services.processor.memory.residency import Residency, Temperature
from services.processor.requests import Chunk
from services.processor.scheduling.room import BatchLimits
from services.processor.scheduling.scheduler import Terms
from smile.errors import NotFound, Overloaded
from smile.names import VplmName, tenant_id
from smile.testing import FakeClock
from tests.unit.services.processor.conftest import Maker, counted, key


@pytest.fixture
def dispatch() -> Dispatch[str]:
    residency: Residency[str] = Residency(counted(200, 100), failed_s=2.0)
    made = Dispatch(BatchLimits(100, 10, 25), residency, wait_s=0.0, clock=FakeClock(0.0))
    for name in "abc":
        made.begin(key(name))
        assert made.admit(key(name), name, 60)
    return made


def taken(dispatch: Dispatch[str]) -> Work[str]:
    found = dispatch.take()
    assert found is not None and found.work is not None
    return found.work


def test_what_has_no_room_on_the_device_waits_for_a_batch_to_end(
    dispatch: Dispatch[str], make: Maker
) -> None:
    dispatch.put([make.chunk(module=name) for name in "abc"])
    first = taken(dispatch)
    assert first.modules == ("a",)
    later: list[Work[str]] = []
    thread = threading.Thread(target=lambda: later.append(taken(dispatch)))
    thread.start()
    thread.join(0.05)
    assert not later, "nothing fits beside it"
    dispatch.release(first)
    thread.join(5)
    assert later[0].modules == ("b",)
    dispatch.release(later[0])
    assert taken(dispatch).modules == ("c",)


def test_every_chunk_boards_once(dispatch: Dispatch[str], make: Maker) -> None:
    chunks = [make.chunk(module=name, tokens=5) for name in "abcabcabc"]
    dispatch.put(chunks)
    boarded: list[int] = []
    while len(boarded) < len(chunks):
        work = taken(dispatch)
        boarded += [chunk.number for chunk in work.batch.chunks]
        dispatch.release(work)
    assert sorted(boarded) == [chunk.number for chunk in chunks]
    assert dispatch.level().queue_texts == 0


def test_levels_tell_both_tiers(dispatch: Dispatch[str], make: Maker) -> None:
    dispatch.put([make.chunk(module="a")])
    dispatch.release(taken(dispatch))
    level = dispatch.level()
    assert (level.host.modules, level.host.nbytes, level.host.bytes_max) == (3, 180, 200)
    assert (level.device.modules, level.device.nbytes, level.device.bytes_max) == (1, 60, 100)
    assert (level.device.counters.misses, level.host.counters.loads) == (1, 3)
    assert dispatch.temperature(key("a")) is Temperature.HOT


def test_pins_unloads_and_sweeps_pass_through(dispatch: Dispatch[str]) -> None:
    with pytest.raises(Overloaded, match="60 bytes"):
        dispatch.pin(key("a"))
    assert dispatch.unload(key("b"))
    assert dispatch.last_used(key("b")) is None
    dispatch.unpin(key("a"))
    assert dispatch.sweep(idle_s=0.0) == 2
    assert dispatch.level().unloads == 3


def test_a_micro_batch_larger_than_memory_is_computed_in_parts(make: Maker) -> None:
    """Sequential execution waits for all modules of a micro-batch, but not for ever."""
    residency: Residency[str] = Residency(counted(100), failed_s=2.0)
    dispatch = Dispatch(BatchLimits(100, 10, 25), residency, wait_s=0.0, clock=FakeClock(0.0))
    dispatch.expect(2)
    chunks = [make.chunk(module=name) for name in "ab"]
    for chunk in chunks:
        dispatch.demand(chunk.module)
        dispatch.put([chunk])
    assert dispatch.admit(key("a"), "a", 60)
    assert not dispatch.admit(key("b"), "b", 60), "a is kept for its request"
    first = taken(dispatch)
    assert first.modules == ("a",)
    dispatch.release(first)
    dispatch.drop(chunks[0].request)
    dispatch.leave()
    assert dispatch.admit(key("b"), "b", 60)
    assert taken(dispatch).modules == ("b",)


def taken_after(dispatch: Dispatch[str], change: Callable[[], object]) -> Work[str]:
    """What is taken because of `change`, and not before."""
    later: list[Work[str]] = []
    thread = threading.Thread(target=lambda: later.append(taken(dispatch)), daemon=True)
    thread.start()
    thread.join(0.05)
    assert not later
    change()
    thread.join(5)
    assert later, "nobody told the thread that waits"
    return later[0]


def test_what_pins_leave_no_room_for_waits_until_one_is_gone(make: Maker) -> None:
    residency: Residency[str] = Residency(counted(200, 100), failed_s=2.0)
    dispatch = Dispatch(BatchLimits(100, 10, 25), residency, wait_s=0.0, clock=FakeClock(0.0))
    for name, nbytes in (("a", 50), ("b", 60)):
        dispatch.begin(key(name))
        assert dispatch.admit(key(name), name, nbytes)
    assert dispatch.pin(key("a"))
    dispatch.put([make.chunk(module="b")])
    assert taken_after(dispatch, lambda: dispatch.unpin(key("a"))).modules == ("b",)


def one_behind(make: Maker) -> tuple[Dispatch[str], Chunk]:
    """Of a vPLM that computes one request at a time: a chunk whose module has left memory, and one
    that is held back behind it."""
    residency: Residency[str] = Residency(counted(200), failed_s=2.0)
    terms = Terms(requests_max_of=lambda _: 1)
    limits, clock = BatchLimits(100, 10, 25), FakeClock(0.0)
    dispatch = Dispatch(limits, residency, wait_s=0.0, clock=clock, terms=terms)
    for name in "ab":
        dispatch.begin(key(name))
        assert dispatch.admit(key(name), name, 60)
    vplm = VplmName(tenant_id("acme"), "v")
    chunks = [make.chunk(module=name, vplm=vplm) for name in "bab"]
    dispatch.put(chunks)
    first = taken(dispatch)
    assert [chunk.number for chunk in first.batch.chunks] == [chunks[0].number]
    assert dispatch.unload(key("a"))
    dispatch.release(first)
    found = dispatch.take()
    assert found is not None and found.work is None and found.wanted == (key("a"),)
    assert dispatch.begin(key("a"))
    return dispatch, chunks[1]


def test_what_a_dropped_chunk_held_back_is_taken(make: Maker) -> None:
    dispatch, chunk = one_behind(make)
    assert taken_after(dispatch, lambda: dispatch.drop(chunk.request)).modules == ("b",)


def test_what_a_failed_chunk_held_back_is_taken(make: Maker) -> None:
    dispatch, _ = one_behind(make)
    gone = NotFound("deleted")
    assert taken_after(dispatch, lambda: dispatch.fail(key("a"), gone)).modules == ("b",)
