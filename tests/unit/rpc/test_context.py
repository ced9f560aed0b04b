"""Deadlines shrink from hop to hop, and request ids are taken only when well-formed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smile.errors import DeadlineExceeded
from smile.rpc.context import (
    HOP_MARGIN_S,
    current_request_id,
    deadline_in,
    outgoing_timeout_s,
    remaining_s,
    request_id_or_new,
)


def test_outside_a_request_the_default_holds() -> None:
    assert remaining_s() is None
    assert outgoing_timeout_s(None, 30.0) == 30.0
    assert outgoing_timeout_s(90.0, 30.0) == 90.0
    assert current_request_id() is None


@given(left=st.floats(1.0, 100.0), asked=st.none() | st.floats(0.0, 1_000.0))
def test_inside_a_request_no_call_outlasts_it(left: float, asked: float | None) -> None:
    with deadline_in(left):
        timeout = outgoing_timeout_s(asked, 30.0)
    assert 0 <= timeout <= left - HOP_MARGIN_S
    if asked is not None:
        assert timeout <= asked


@pytest.mark.parametrize("left", [-1.0, 0.0, HOP_MARGIN_S])
def test_without_time_for_a_hop_nobody_is_called(left: float) -> None:
    with deadline_in(left), pytest.raises(DeadlineExceeded):
        outgoing_timeout_s(None, 30.0)


def test_deadlines_nest_and_end() -> None:
    with deadline_in(10.0):
        with deadline_in(1.0):
            assert outgoing_timeout_s(None, 30.0) <= 1.0
        assert outgoing_timeout_s(None, 30.0) > 9.0
    assert remaining_s() is None


@pytest.mark.parametrize("offered", ["a", "r-1", "A.b_c-9", "x" * 64])
def test_good_request_ids_are_kept(offered: str) -> None:
    assert request_id_or_new(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 65, "a b", "a\n", "é", b"bytes", '{"a":1}'])
def test_bad_request_ids_are_replaced(offered: object) -> None:
    first, second = request_id_or_new(offered), request_id_or_new(offered)
    assert first != second
    assert first != offered
    assert request_id_or_new(first) == first
