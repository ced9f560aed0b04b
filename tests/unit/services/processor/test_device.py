"""The device thread and the dispatch it pulls from."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from services.processor.device import DeviceThread, Report
from services.processor.dispatch import Dispatch
from services.processor.requests import Answered, Batch, Failed, FloatArray
from services.processor.residency import ModuleState, Residency
from services.processor.scheduler import BatchLimits
from smile.errors import DataCorrupted, DeadlineExceeded, Internal, Unavailable
from smile.testing import FakeClock
from tests.unit.services.processor.conftest import Maker, key

Run = Callable[[Batch, Sequence[str]], list[tuple[FloatArray, ...]]]


class FakeEngine:
    """Answers each text with its module's name; `bad` and `buggy` modules fail their batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def run(self, batch: Batch, modules: Sequence[str]) -> list[tuple[FloatArray, ...]]:
        self.batches.append(list(modules))
        if "bad" in modules:
            raise DataCorrupted("not finite")
        if "buggy" in modules:
            raise ValueError("somebody's text")
        one = np.zeros(1, dtype=np.float32)
        return [tuple(one for _ in chunk.texts) for chunk in batch.chunks]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(0.0)


@pytest.fixture
def dispatch(clock: FakeClock) -> Dispatch[str]:
    residency: Residency[str] = Residency(100, failed_s=2.0)
    return Dispatch(BatchLimits(100, 10, 25), residency, wait_s=0.0, clock=clock)


def resident(dispatch: Dispatch[str], *names: str) -> None:
    for name in names:
        assert dispatch.begin(key(name))
        assert dispatch.admit(key(name), name, 1)


@contextmanager
def running(dispatch: Dispatch[str], engine: FakeEngine) -> Iterator[queue.Queue[Report[str]]]:
    told: queue.Queue[Report[str]] = queue.Queue()
    thread = DeviceThread(dispatch, engine, told.put)
    thread.start()
    try:
        yield told
    finally:
        dispatch.close()
        thread.join(5)
        assert not thread.alive


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
    assert engine.batches == [["a", "b"]]


@pytest.mark.parametrize(("name", "error"), [("bad", DataCorrupted), ("buggy", Internal)])
def test_a_poisoned_part_fails_alone(
    dispatch: Dispatch[str], make: Maker, name: str, error: type[Exception]
) -> None:
    engine = FakeEngine()
    resident(dispatch, "a", name, "b")
    dispatch.put([make.chunk(module=module) for module in ("a", name, "b", name)])
    with running(dispatch, engine) as told:
        outcomes = told.get(timeout=5).outcomes
        by_module = {
            outcome.chunk.module.digest: type(getattr(outcome, "error", None))
            for outcome in outcomes
        }
        assert by_module == {"a": type(None), name: error, "b": type(None)}
        assert engine.batches == [["a", name, "b"], ["a"], [name], ["b"]]
        failed = next(outcome for outcome in outcomes if isinstance(outcome, Failed))
        assert "somebody" not in failed.error.message
        dispatch.put([make.chunk(module="a")])
        assert isinstance(told.get(timeout=5).outcomes[0], Answered), "the thread lives on"


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
    assert engine.batches == []


def test_a_batch_waits_a_moment_for_company(make: Maker) -> None:
    residency: Residency[str] = Residency(100, failed_s=2.0)
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
