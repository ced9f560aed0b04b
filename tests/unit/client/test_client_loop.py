"""The loop in a thread: results, errors, callbacks, iterators and the end."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Iterator

import pytest

from smile.client.loop import Here, LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.close()


async def numbers(closed: list[bool]) -> AsyncGenerator[int, None]:
    try:
        for number in range(3):
            await asyncio.sleep(0)
            yield number
    finally:
        closed.append(True)


def test_results_and_errors_come_back(loop: LoopThread) -> None:
    async def answer() -> int:
        assert threading.current_thread().name == "smile-client"
        return 42

    async def fail() -> None:
        raise KeyError("x")

    assert loop.call(lambda _: answer()) == 42
    with pytest.raises(KeyError):
        loop.call(lambda _: fail())


def test_callbacks_run_here_in_order_before_the_result(loop: LoopThread) -> None:
    heard: list[tuple[int, threading.Thread]] = []

    async def work(here: Here) -> str:
        tell = here(lambda number: heard.append((number, threading.current_thread())))
        assert tell is not None and here(None) is None
        for number in range(3):
            tell(number)
        return "done"

    assert loop.call(work) == "done"
    assert heard == [(number, threading.current_thread()) for number in range(3)]


def test_an_error_in_a_callback_cancels_the_work_and_waits_for_its_end(loop: LoopThread) -> None:
    ended: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    async def work(here: Here) -> None:
        tell = here(fail)
        assert tell is not None
        tell()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            ended.append("cleaned up")
            raise

    with pytest.raises(ZeroDivisionError):
        loop.call(work)
    assert ended == ["cleaned up"]


def test_iterators_are_lazy_and_closed(loop: LoopThread) -> None:
    closed: list[bool] = []
    assert list(loop.iterate(lambda: numbers(closed))) == [0, 1, 2]
    assert closed == [True]
    items = loop.iterate(lambda: numbers(closed))
    assert next(items) == 0 and closed == [True]
    items.close()  # type: ignore[attr-defined]
    assert closed == [True, True]


def test_closing_ends_what_is_left_open() -> None:
    loop = LoopThread()
    closed: list[bool] = []
    items = loop.iterate(lambda: numbers(closed))
    assert next(items) == 0
    loop.close()
    assert closed == [True]
    del items
    gc.collect()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call(lambda _: asyncio.sleep(0))


def test_the_thread_starts_late_and_stops_with_its_owner() -> None:
    before = threading.active_count()
    loop = LoopThread()
    assert threading.active_count() == before
    loop.call(lambda _: asyncio.sleep(0))
    assert threading.active_count() == before + 1
    del loop
    gc.collect()
    assert threading.active_count() == before


def test_waiting_for_oneself_is_refused_instead_of_hanging(loop: LoopThread) -> None:
    async def reenter() -> None:
        loop.call(lambda _: asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="own loop"):
        loop.call(lambda _: reenter())
