"""The lanes that prepare and compute, and the dispatch they pull from."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from services.processor.lanes.device import Lanes, Report
from services.processor.lanes.dispatch import Dispatch
from services.processor.lanes.handoff import Handoff
from services.processor.lanes.trace import Trace
from services.processor.memory.residency import ModuleState, Residency
from services.processor.requests import Answered, Batch, Computed, Failed
from services.processor.scheduling.room import BatchLimits
from smile.errors import DataCorrupted, DeadlineExceeded, Internal, Unavailable
from smile.testing import FakeClock
from tests.unit.services.processor.conftest import Maker, counted, key


class Panic(BaseException):
    """What native libraries raise: no `Exception`."""


FAULTS: dict[str, BaseException] = {
    "bad": DataCorrupted("not finite"),
    "buggy": ValueError("somebody's text"),
    "big": MemoryError("somebody's text"),
    "panic": Panic("somebody's text"),
}


@dataclass
class FakeEngine:
    """Answers each text with zero; modules named in `FAULTS` fail their batch, in `prepare` where
    their name ends in `-prepare`.
    """

    prepares: list[list[str]] = field(default_factory=list)
    computes: list[list[str]] = field(default_factory=list)
    go: threading.Event | None = None
    computing: threading.Event = field(default_factory=threading.Event)

    def prepare(self, batch: Batch, modules: Sequence[str]) -> tuple[Batch, list[str]]:
        self.prepares.append(list(modules))
        for name in modules:
            if name.endswith("-prepare"):
                raise FAULTS[name.removesuffix("-prepare")]
        return batch, list(modules)

    def give_way(self) -> None:
        """Its answers take no time."""

    def compute(self, prepared: tuple[Batch, list[str]]) -> list[Computed]:
        batch, modules = prepared
        self.computes.append(modules)
        self.computing.set()
        if self.go is not None:
            assert self.go.wait(5)
        for name in modules:
            if name in FAULTS:
                raise FAULTS[name]
        one = np.zeros(1, dtype=np.float32)
        return [
            DataCorrupted("not finite either")
            if chunk.module.digest == "nan"
            else tuple(one for _ in chunk.texts)
            for chunk in batch.chunks
        ]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(0.0)


@pytest.fixture
def dispatch(clock: FakeClock) -> Dispatch[str]:
    residency: Residency[str] = Residency(counted(100), failed_s=2.0)
    return Dispatch(BatchLimits(100, 10, 25), residency, wait_s=0.0, clock=clock)


def lively() -> Dispatch[str]:
    """A dispatch on the real clock."""
    residency: Residency[str] = Residency(counted(100), 2.0)
    return Dispatch(BatchLimits(100, 10, 25), residency, wait_s=0.0, clock=time.monotonic)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def resident(dispatch: Dispatch[str], *names: str) -> None:
    for name in names:
        assert dispatch.begin(key(name))
        assert dispatch.admit(key(name), name, 1)


@contextmanager
def running(
    dispatch: Dispatch[str], engine: FakeEngine, in_flight: int = 2
) -> Iterator[queue.Queue[Report[str]]]:
    told: queue.Queue[Report[str]] = queue.Queue()
    trace = Trace()
    lanes = Lanes(dispatch, engine, Handoff(in_flight, time.monotonic, trace), trace)
    lanes.start(told.put)
    try:
        yield told
    finally:
        dispatch.close()
        lanes.join(5)
        assert not lanes.alive


def test_a_batch_is_computed_and_told(dispatch: Dispatch[str], make: Maker) -> None:
    engine = FakeEngine()
    resident(dispatch, "a", "b")
    chunks = [make.chunk(module="a", texts=2), make.chunk(module="b")]
    dispatch.put(chunks)
    with running(dispatch, engine) as told:
        report = told.get(timeout=5)
    assert [outcome.chunk for outcome in report.outcomes] == chunks
    assert all(isinstance(outcome, Answered) for outcome in report.outcomes)
    ride = report.outcomes[0].ride  # type: ignore[union-attr]
    assert (ride.texts, ride.vplms) == (3, 2)
    assert engine.prepares == engine.computes == [["a", "b"]]


@pytest.mark.parametrize("step", ["", "-prepare"])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_poisoned_part_fails_alone(
    dispatch: Dispatch[str], make: Maker, fault: str, step: str
) -> None:
    engine = FakeEngine()
    name = fault + step
    resident(dispatch, "a", name, "b")
    dispatch.put([make.chunk(module=module) for module in ("a", name, "b", name)])
    with running(dispatch, engine) as told:
        outcomes = told.get(timeout=5).outcomes
        by_module = {
            outcome.chunk.module.digest: type(getattr(outcome, "error", None))
            for outcome in outcomes
        }
        error = DataCorrupted if fault == "bad" else Internal
        assert by_module == {"a": type(None), name: error, "b": type(None)}
        assert len(outcomes) == 4
        assert engine.prepares == [["a", name, "b"], ["a"], [name], ["b"]]
        together = [] if step else [["a", name, "b"]]
        assert engine.computes == [*together, ["a"], *([] if step else [[name]]), ["b"]]
        failed = next(outcome for outcome in outcomes if isinstance(outcome, Failed))
        assert "somebody" not in failed.error.message
        dispatch.put([make.chunk(module="a")])
        assert isinstance(told.get(timeout=5).outcomes[0], Answered), "the lanes live on"
    assert dispatch.begin(key("huge"))
    assert dispatch.admit(key("huge"), "huge", 100), "no module is held any more"


def test_an_answer_that_is_not_finite_costs_nobody_a_second_computation(
    dispatch: Dispatch[str], make: Maker
) -> None:
    engine = FakeEngine()
    resident(dispatch, "a", "nan", "b")
    dispatch.put([make.chunk(module=module) for module in ("a", "nan", "b")])
    with running(dispatch, engine) as told:
        outcomes = told.get(timeout=5).outcomes
    assert [type(outcome) for outcome in outcomes] == [Answered, Failed, Answered]
    assert engine.computes == [["a", "nan", "b"]]


def test_a_batch_that_fails_outside_its_parts_is_told_all_the_same(
    dispatch: Dispatch[str], make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    resident(dispatch, "a", "b")
    with running(dispatch, FakeEngine()) as told:
        with monkeypatch.context() as patch:
            patch.setattr(Handoff, "put", full)
            dispatch.put([make.chunk(module="a"), make.chunk(module="b")])
            outcomes = told.get(timeout=5).outcomes
            assert [type(getattr(outcome, "error", None)) for outcome in outcomes] == [Internal] * 2
        dispatch.put([make.chunk(module="a")])
        assert isinstance(told.get(timeout=5).outcomes[0], Answered)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_as_many_batches_are_in_flight_as_allowed(make: Maker, in_flight: int) -> None:
    held = lively()
    resident(held, "m")
    engine = FakeEngine(go=threading.Event())
    assert engine.go is not None
    queued = [make.chunk(tokens=100, module="m", deadline=1e9) for _ in range(4)]
    held.put(queued)
    with running(held, engine, in_flight) as told:
        assert engine.computing.wait(5)
        until(lambda: len(engine.prepares) >= in_flight)
        time.sleep(0.05)
        assert len(engine.prepares) == in_flight
        engine.go.set()
        for _ in queued:
            assert told.get(timeout=5).outcomes


def test_what_nobody_waits_for_any_more_is_not_computed(make: Maker) -> None:
    dispatch = Dispatch(
        BatchLimits(100, 10, 25),
        Residency[str](counted(100), 2.0),
        wait_s=0.0,
        clock=time.monotonic,
    )
    resident(dispatch, "m", "n")
    engine = FakeEngine(go=threading.Event())
    assert engine.go is not None
    plug = make.chunk(tokens=100, module="m", deadline=1e9)
    gone = make.chunk(tokens=60, module="m", deadline=1e9)
    kept = make.chunk(tokens=40, module="n", deadline=1e9)
    dispatch.put([plug, gone, kept])
    with running(dispatch, engine) as told:
        until(lambda: len(engine.prepares) == 2)
        assert dispatch.drop(gone.request) == 0, "it does not wait in the queue any more"
        engine.go.set()
        told.get(timeout=5)
        first, second = told.get(timeout=5).outcomes
    assert engine.computes == [["m"], ["n"]]
    assert isinstance(first, Failed)
    assert first.chunk is gone
    assert isinstance(second, Answered)
    assert second.chunk is kept


def test_what_was_taken_is_answered_after_closing(make: Maker) -> None:
    dispatch = Dispatch(
        BatchLimits(100, 10, 25),
        Residency[str](counted(100), 2.0),
        wait_s=0.0,
        clock=time.monotonic,
    )
    resident(dispatch, "m")
    engine = FakeEngine(go=threading.Event())
    assert engine.go is not None
    chunks = [make.chunk(tokens=100, module="m", deadline=1e9) for _ in range(4)]
    dispatch.put(chunks)
    with running(dispatch, engine) as told:
        until(lambda: len(engine.prepares) == 2)
        assert dispatch.close() == chunks[2:]
        engine.go.set()
        answered = [told.get(timeout=5).outcomes[0] for _ in range(2)]
    assert [outcome.chunk for outcome in answered] == chunks[:2]
    assert all(isinstance(outcome, Answered) for outcome in answered)


def test_a_failure_outside_a_batch_does_not_end_the_thread(
    dispatch: Dispatch[str], make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident(dispatch, "a")
    real, fails = dispatch.take, iter([RuntimeError("odd")])

    def take() -> object:
        for error in fails:
            raise error
        return real()

    monkeypatch.setattr(dispatch, "take", take)
    with running(dispatch, FakeEngine()) as told:
        dispatch.put([make.chunk(module="a")])
        assert told.get(timeout=5).outcomes


def test_modules_are_released_after_their_batch(dispatch: Dispatch[str], make: Maker) -> None:
    resident(dispatch, "a")
    dispatch.put([make.chunk(module="a")])
    with running(dispatch, FakeEngine()) as told:
        told.get(timeout=5)
    assert dispatch.begin(key("big"))
    assert dispatch.admit(key("big"), "big", 100), "the other may leave"


def test_absent_modules_are_told_and_their_chunks_come_back(
    dispatch: Dispatch[str], make: Maker
) -> None:
    with running(dispatch, FakeEngine()) as told:
        dispatch.put([make.chunk(module="cold")])
        assert told.get(timeout=5).taken.wanted == (key("cold"),)
        resident(dispatch, "cold")
        assert isinstance(told.get(timeout=5).outcomes[0], Answered)


def test_a_failed_load_gives_back_what_waited(dispatch: Dispatch[str], make: Maker) -> None:
    chunk = make.chunk(module="cold")
    with running(dispatch, FakeEngine()) as told:
        dispatch.put([chunk])
        told.get(timeout=5)
        assert dispatch.demand(key("cold")) is ModuleState.ABSENT
        (failed,) = dispatch.fail(key("cold"), DataCorrupted("bad"))
        assert failed.chunk is chunk
        dispatch.put([make.chunk(module="cold")])
        (failed,) = told.get(timeout=5).taken.failed
        assert isinstance(failed.error, DataCorrupted)


def test_what_expired_is_told_and_not_computed(
    dispatch: Dispatch[str], make: Maker, clock: FakeClock
) -> None:
    engine = FakeEngine()
    resident(dispatch, "a")
    dispatch.put([make.chunk(module="a", deadline=1.0)])
    clock.advance(1.0)
    with running(dispatch, engine) as told:
        (failed,) = told.get(timeout=5).taken.failed
    assert isinstance(failed.error, DeadlineExceeded)
    assert engine.prepares == []


def test_a_batch_waits_a_moment_for_company(make: Maker) -> None:
    residency: Residency[str] = Residency(counted(100), failed_s=2.0)
    dispatch = Dispatch(BatchLimits(100, 10, 25), residency, wait_s=0.2, clock=time.monotonic)
    engine = FakeEngine()
    resident(dispatch, "a", "b")
    with running(dispatch, engine) as told:
        dispatch.put([make.chunk(module="a", deadline=1e9)])
        dispatch.put([make.chunk(module="b", deadline=1e9)])
        assert len(told.get(timeout=5).outcomes) == 2
        started = time.monotonic()
        dispatch.put([make.chunk(tokens=100, module="a", deadline=1e9)])
        told.get(timeout=5)
        assert time.monotonic() - started < 0.15, "a full batch does not wait"


def test_closing_gives_back_what_was_not_computed(dispatch: Dispatch[str], make: Maker) -> None:
    chunk = make.chunk()
    dispatch.put([chunk])
    assert dispatch.close() == [chunk]
    assert dispatch.take() is None
    with pytest.raises(Unavailable, match="stopping"):
        dispatch.put([make.chunk()])


def test_bulk_is_computed_beside_others_by_threads_of_low_priority() -> None:
    residency: Residency[str] = Residency(counted(100), 2.0)
    limits = BatchLimits(100, 10, 25, bulk_batches_max=2)
    dispatch = Dispatch(limits, residency, wait_s=0.0, clock=time.monotonic)
    resident(dispatch, "m")
    make, engine = Maker(), Slow()
    told: queue.Queue[Report[str]] = queue.Queue()
    trace = Trace()
    handoff = Handoff[Any](2, time.monotonic, trace, bulk_streams=1)
    lanes = Lanes(dispatch, engine, handoff, trace)
    lanes.start(told.put)
    try:
        end = time.monotonic() + 60
        dispatch.put([make.chunk(tokens=90, deadline=end) for _ in range(6)])
        assert engine.computing.wait(5)
        time.sleep(0.05)
        assert dispatch.level().queue_texts == 4, "as many are taken as may be"
        others = make.chunk("other", 10, deadline=end)
        assert dispatch.begin(others.module)
        assert dispatch.admit(others.module, "other", 1)
        dispatch.put([others])
        first = told.get(timeout=5)
        assert "other" in [one.chunk.tenant for one in first.outcomes]
        assert first.steady
        engine.bulk_may_go.set()
        reports = [told.get(timeout=5) for _ in range(2)]
        assert not reports[0].steady, "it had to give way"
    finally:
        engine.bulk_may_go.set()
        dispatch.close()
        lanes.join(5)
    assert engine.computed["bulk-0"], "bulk gives way"
    assert not engine.computed["device-0"], "others do not"


class Slow(FakeEngine):
    """Takes its time over bulk, and notes who computes."""

    def __init__(self) -> None:
        super().__init__()
        self.bulk_may_go = threading.Event()
        self.gives_way: set[str] = set()
        self.computed: dict[str, bool] = {}  # thread to whether it gave way

    def give_way(self) -> None:
        self.gives_way.add(threading.current_thread().name)

    def compute(self, prepared: tuple[Batch, list[str]]) -> list[Computed]:
        thread = threading.current_thread()
        self.computed[thread.name] = thread.name in self.gives_way
        if thread.name.startswith("bulk"):
            self.computing.set()
            assert self.bulk_may_go.wait(5)
        return super().compute(prepared)
