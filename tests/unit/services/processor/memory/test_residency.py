"""Modules in memory: never over budget, never gone while in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from services.processor.memory.residency import ModuleState, Residency, Temperature
from services.processor.memory.space import Slot
from smile.errors import (
    Aborted,
    DataCorrupted,
    FailedPrecondition,
    NotFound,
    Overloaded,
    SmileError,
)
from tests.unit.services.processor.conftest import counted, key

BUDGET = 100


def loaded(residency: Residency[str], name: str, nbytes: int = 40, now: float = 0.0) -> bool:
    assert residency.begin(key(name), now)
    if residency.reserve(key(name), (nbytes,)) is None:
        return False
    residency.publish(key(name), name, now)
    return True


def used(residency: Residency[str], name: str, now: float = 0.0) -> None:
    residency.demand(key(name), now)
    assert residency.acquire(key(name), now) == name
    residency.release(key(name))
    residency.undemand(key(name))


@pytest.fixture
def residency() -> Residency[str]:
    return Residency(counted(BUDGET), failed_s=2.0)


def test_a_module_goes_from_absent_over_loading_to_ready(residency: Residency[str]) -> None:
    assert residency.state(key("a"), 0.0) is ModuleState.ABSENT
    assert residency.begin(key("a"), 0.0)
    assert residency.state(key("a"), 0.0) is ModuleState.LOADING
    assert not residency.begin(key("a"), 0.0), "one load at a time"
    assert residency.reserve(key("a"), (30, 10)) is not None
    assert residency.state(key("a"), 0.0) is ModuleState.LOADING, "its rows are being written"
    residency.publish(key("a"), "a", 0.0)
    assert residency.state(key("a"), 0.0) is ModuleState.READY
    assert residency.acquire(key("a"), 0.0) == "a"
    assert (residency.host.space.nbytes, residency.host.counters.loads, len(residency)) == (
        40,
        1,
        1,
    )


def test_who_is_colder_leaves(residency: Residency[str]) -> None:
    loaded(residency, "a")
    loaded(residency, "b")
    used(residency, "a")
    assert loaded(residency, "c")
    assert residency.state(key("b"), 0.0) is ModuleState.ABSENT
    assert residency.state(key("a"), 0.0) is ModuleState.READY
    assert residency.host.counters.evictions == 1


def test_what_is_in_use_stays(residency: Residency[str]) -> None:
    loaded(residency, "a", 60)
    residency.acquire(key("a"), 0.0)
    assert not loaded(residency, "b", 60)
    assert residency.state(key("b"), 0.0) is ModuleState.LOADING
    residency.release(key("a"))
    assert residency.reserve(key("b"), (60,)) is not None


def test_what_was_loaded_for_a_request_stays_until_used(residency: Residency[str]) -> None:
    residency.demand(key("a"), 0.0)
    loaded(residency, "a", 60)
    assert not loaded(residency, "b", 60)
    residency.acquire(key("a"), 0.0)
    residency.release(key("a"))
    assert residency.reserve(key("b"), (60,)) is not None


def test_what_was_prefetched_stays_for_the_request_that_comes(residency: Residency[str]) -> None:
    loaded(residency, "a", 60)
    residency.demand(key("a"), 0.0)
    assert not loaded(residency, "b", 60)
    residency.undemand(key("a"))
    assert residency.reserve(key("b"), (60,)) is not None


def test_eviction_takes_nothing_where_it_would_not_do(residency: Residency[str]) -> None:
    loaded(residency, "a", 50)
    loaded(residency, "b", 50)
    residency.acquire(key("a"), 0.0)
    assert not loaded(residency, "c", 60)
    assert residency.state(key("b"), 0.0) is ModuleState.READY
    assert residency.host.counters.evictions == 0


def test_a_module_larger_than_memory_is_refused(residency: Residency[str]) -> None:
    residency.begin(key("a"), 0.0)
    with pytest.raises(FailedPrecondition, match=r"101 bytes.* 100") as caught:
        residency.reserve(key("a"), (51, 50))
    assert caught.value.reason == "MODULE_TOO_LARGE"


def test_a_failure_is_remembered_for_a_while(residency: Residency[str]) -> None:
    error = DataCorrupted("bad")
    residency.begin(key("a"), 0.0)
    residency.fail(key("a"), error, 10.0)
    assert residency.state(key("a"), 11.9) is ModuleState.FAILED
    assert residency.error(key("a")) is error
    assert not residency.begin(key("a"), 11.9)
    assert residency.begin(key("a"), 12.0)
    assert residency.error(key("a")) is None


@pytest.mark.parametrize("gone", [NotFound("absent"), Aborted("another one")])
def test_a_name_that_was_gone_is_no_failure_of_the_module(
    residency: Residency[str], gone: SmileError
) -> None:
    residency.begin(key("a"), 0.0)
    residency.fail(key("a"), gone, 10.0)
    assert residency.state(key("a"), 10.0) is ModuleState.ABSENT
    assert residency.begin(key("a"), 10.0)


def test_a_load_that_fails_gives_its_room_back(residency: Residency[str]) -> None:
    residency.begin(key("a"), 0.0)
    residency.reserve(key("a"), (100,))
    residency.fail(key("a"), DataCorrupted("bad"), 0.0)
    assert residency.host.space.nbytes == 0
    assert loaded(residency, "b", 100)


def test_hits_count_requests_that_found_their_module(residency: Residency[str]) -> None:
    residency.demand(key("a"), 0.0)
    loaded(residency, "a")
    residency.demand(key("a"), 0.0)
    counters = residency.host.counters
    assert (counters.hits, counters.misses, counters.loads) == (1, 1, 1)
    assert counters.loaded_bytes == 40


def test_tenants_do_not_share_equal_bytes() -> None:
    assert key("same", "acme") != key("same", "rival")


def test_modules_warm_up_with_use_and_cool_down_for_others() -> None:
    residency: Residency[str] = Residency(counted(BUDGET, 50), failed_s=2.0)
    assert residency.temperature(key("a")) is Temperature.COLD
    loaded(residency, "a")
    assert residency.temperature(key("a")) is Temperature.WARM
    used(residency, "a", 3.0)
    assert residency.temperature(key("a")) is Temperature.HOT
    assert residency.last_used(key("a")) == 3.0
    loaded(residency, "b")
    used(residency, "b")
    assert residency.temperature(key("a")) is Temperature.WARM, "the device holds one of them"
    used(residency, "b")
    counters = residency.device.counters
    assert (counters.hits, counters.misses, counters.evictions) == (1, 2, 1)


def test_a_full_device_makes_others_wait() -> None:
    residency: Residency[str] = Residency(counted(BUDGET, 50), failed_s=2.0)
    loaded(residency, "a")
    loaded(residency, "b")
    assert residency.acquire(key("a"), 0.0) == "a"
    assert residency.acquire(key("b"), 0.0) is None
    residency.release(key("a"))
    assert residency.acquire(key("b"), 0.0) == "b"


def test_pinned_modules_stay_within_their_share(residency: Residency[str]) -> None:
    assert not residency.pin(key("a")), "it is not there"
    loaded(residency, "a")
    assert residency.pin(key("a"))
    assert residency.pin(key("a")), "once is enough"
    assert residency.temperature(key("a")) is Temperature.HOT
    loaded(residency, "b")
    with pytest.raises(Overloaded, match=r"80 bytes.* 50") as caught:
        residency.pin(key("b"))
    assert caught.value.reason == "PINNED_SHARE_FULL"
    assert loaded(residency, "c", 60), "b has left, a cannot"
    assert residency.state(key("a"), 0.0) is ModuleState.READY
    residency.unpin(key("a"))
    assert loaded(residency, "d", 100)


def test_unloading_gives_memory_back_once_nobody_uses_it(residency: Residency[str]) -> None:
    loaded(residency, "a")
    assert residency.unload(key("a"))
    assert (residency.host.space.nbytes, residency.unloads) == (0, 1)
    assert not residency.unload(key("a")), "it has left"
    loaded(residency, "b")
    residency.acquire(key("b"), 0.0)
    assert not residency.unload(key("b"))
    assert residency.state(key("b"), 0.0) is ModuleState.READY
    residency.release(key("b"))
    assert residency.state(key("b"), 0.0) is ModuleState.ABSENT
    assert residency.device.space.nbytes == 0


def test_unloading_waits_for_requests_that_are_inside(residency: Residency[str]) -> None:
    residency.demand(key("a"), 0.0)
    loaded(residency, "a")
    residency.acquire(key("a"), 0.0)
    residency.release(key("a"))
    assert not residency.unload(key("a")), "the request may have more chunks"
    residency.undemand(key("a"))
    assert residency.state(key("a"), 0.0) is ModuleState.ABSENT


def test_who_is_asked_for_again_is_not_unloaded(residency: Residency[str]) -> None:
    loaded(residency, "a")
    residency.acquire(key("a"), 0.0)
    residency.unload(key("a"))
    residency.demand(key("a"), 0.0)
    residency.release(key("a"))
    residency.undemand(key("a"))
    assert residency.state(key("a"), 0.0) is ModuleState.READY


def test_idle_modules_leave_by_themselves(residency: Residency[str]) -> None:
    loaded(residency, "a", 30, now=0.0)
    loaded(residency, "b", 30, now=0.0)
    loaded(residency, "c", 30, now=0.0)
    residency.acquire(key("c"), 0.0)
    used(residency, "a", 5.0)
    assert residency.sweep(9.9, idle_s=10.0) == 0
    assert residency.sweep(10.0, idle_s=10.0) == 1
    assert residency.state(key("b"), 10.0) is ModuleState.ABSENT
    assert residency.state(key("c"), 10.0) is ModuleState.READY, "it is in use"
    residency.release(key("c"))
    assert residency.sweep(20.0, idle_s=10.0) == 2
    assert residency.host.space.nbytes == 0


def test_a_sweep_of_everything_ends_where_something_is_held(residency: Residency[str]) -> None:
    loaded(residency, "a", 30)
    loaded(residency, "b", 30)
    residency.acquire(key("a"), 0.0)
    assert residency.sweep(1.0, idle_s=0.0) == 1
    assert residency.state(key("a"), 1.0) is ModuleState.READY


@dataclass
class FakeTransfer:
    done: bool = False


@dataclass
class FakeMover:
    """Copies that end when told."""

    transfers: list[FakeTransfer] = field(default_factory=list)

    def promote(self, module: str, slots: Sequence[Slot]) -> tuple[str, FakeTransfer]:
        self.transfers.append(FakeTransfer())
        return f"{module} on the device", self.transfers[-1]


def test_what_is_being_copied_from_stays() -> None:
    mover = FakeMover()
    residency: Residency[str] = Residency(replace(counted(BUDGET), mover=mover), failed_s=2.0)
    loaded(residency, "a", 60)
    assert residency.acquire(key("a"), 0.0) == "a on the device"
    residency.release(key("a"))
    assert not loaded(residency, "b", 60), "the copy may still read the row"
    assert not residency.unload(key("a"))
    mover.transfers[0].done = True
    assert loaded(residency, "c", 30)
    residency.acquire(key("c"), 0.0)
    assert residency.state(key("a"), 0.0) is ModuleState.ABSENT, "unloaded with the copy's end"
    assert residency.reserve(key("b"), (60,)) is not None


def test_nothing_grows_with_modules_that_have_left(residency: Residency[str]) -> None:
    for number in range(20_000):
        assert loaded(residency, f"m{number}", 40, now=float(number))
    assert len(residency) == 2
    held = {
        name: len(value) for name, value in vars(residency).items() if hasattr(value, "__len__")
    }
    assert max(held.values()) <= 2, held
