"""When the next batch is formed, and the bounded queue between two threads."""

from __future__ import annotations

import threading
import time

import pytest

from services.processor.lanes.handoff import (
    ERROR_SHARE,
    PREPARE_TIMES,
    SPARE_S,
    Handoff,
    Load,
    Pace,
)
from services.processor.lanes.trace import Trace


def handoff(in_flight_max: int) -> Handoff[str]:
    return Handoff(in_flight_max, time.monotonic, Trace())


def passes(waits: Handoff[str], within_s: float) -> bool:
    """Whether the turn comes within a time."""
    thread = threading.Thread(target=waits.wait_turn, daemon=True)
    thread.start()
    thread.join(within_s)
    return not thread.is_alive()


def test_an_idle_device_waits_for_nothing() -> None:
    assert Pace().wait_s(5.0) == 0.0


def test_the_next_batch_is_formed_just_before_the_device_needs_it() -> None:
    pace = Pace()
    pace.prepared(0.01)
    pace.started(0, Load(100, 0.01, expected_s=1.0), now=10.0)
    lead_s = PREPARE_TIMES * 0.01 + ERROR_SHARE * 1.0 + SPARE_S
    assert pace.wait_s(10.0) == pytest.approx(1.0 - lead_s)
    assert pace.wait_s(10.5) == pytest.approx(0.5 - lead_s)
    assert pace.wait_s(11.5) == 0.0, "the batch takes longer than expected"


def test_without_a_prediction_a_batch_takes_as_long_per_token_as_lately() -> None:
    pace = Pace()
    pace.started(0, Load(100, 0.0), now=0.0)
    assert pace.wait_s(0.0) == 0.0, "nothing is known yet"
    pace.ended(0, 2.0)
    pace.started(0, Load(50, 0.0), now=3.0)
    assert pace.wait_s(3.0) == pytest.approx(1.0 - ERROR_SHARE - SPARE_S)


def test_with_several_streams_the_first_to_end_decides() -> None:
    pace = Pace()
    pace.started(1, Load(100, 0.0, expected_s=3.0), now=0.0)
    pace.started(2, Load(100, 0.0, expected_s=1.0), now=0.0)
    assert pace.wait_s(0.0) == pytest.approx(1.0 - 0.1 - SPARE_S)
    pace.ended(2, 1.0)
    assert pace.wait_s(1.0) == pytest.approx(2.0 - 0.3 - SPARE_S)


def test_every_stream_has_a_batch_before_one_is_prepared_ahead() -> None:
    between: Handoff[str] = Handoff(3, time.monotonic, Trace(), streams=2)
    assert passes(between, 1.0)
    between.put("a", Load(1, 0.0, expected_s=60.0))
    assert passes(between, 1.0), "the other stream has nothing to do"
    between.put("b", Load(1, 0.0, expected_s=60.0))
    assert not passes(between, 0.1), "both are about to begin"
    streams = [threading.Thread(target=between.take) for _ in "ab"]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    assert not passes(between, 0.1), "both are far from their ends"
    between.close()


def test_jobs_come_out_in_order_and_then_the_end() -> None:
    between = handoff(4)
    for job in "abc":
        between.put(job, Load(1, 0.0))
    between.close()
    assert [between.take() for _ in range(4)] == ["a", "b", "c", None]


def test_no_more_are_in_flight_than_allowed() -> None:
    between = handoff(1)
    assert passes(between, 1.0)
    between.put("a", Load(1, 0.0))
    assert not passes(between, 0.1)
    assert between.take() == "a"
    assert not passes(between, 0.1), "it is being computed"
    between.ended()
    assert passes(between, 1.0)


def test_one_ahead_waits_for_the_device_to_begin_and_nearly_end() -> None:
    between = handoff(2)
    between.put("a", Load(1, 0.0, expected_s=0.3))
    assert not passes(between, 0.1), "the device has not begun"
    between.take()
    started = time.monotonic()
    assert passes(between, 5.0)
    assert time.monotonic() - started > 0.2


def test_a_device_that_is_early_is_not_kept_waiting() -> None:
    between = handoff(2)
    between.put("a", Load(1, 0.0, expected_s=60.0))
    between.take()
    between.ended()
    assert passes(between, 1.0)


def test_bulk_has_a_queue_of_its_own_and_knows_whether_it_had_to_give_way() -> None:
    both: Handoff[str] = Handoff(2, time.monotonic, Trace(), bulk_streams=1)
    load = Load(10, 0.0, expected_s=0.001)
    both.put("bulk", load, bulk=True)
    assert passes(both, 0.5), "bulk takes nobody's place"
    both.put("guest", load)
    assert both.take_bulk() == "bulk"
    assert both.take() == "guest"
    both.ended()
    assert not both.ended_bulk(), "a batch was begun meanwhile"
    both.put("bulk", load, bulk=True)
    assert both.take_bulk() == "bulk"
    assert both.ended_bulk()
    both.close()
    assert (both.take(), both.take_bulk()) == (None, None)
