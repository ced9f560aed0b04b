"""Native calls put together, and the memory they share."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from smile.errors import FailedPrecondition
from smile.model.kernels import EAGER, KernelChoice, Kernels, kernels_for
from smile.model.kernels.activation import Activation
from smile.model.kernels.build import Places, load
from smile.model.kernels.dense import Spans
from smile.model.kernels.tape import Library, real
from smile.model.kernels.workspace import Slot, Workspace, Workspaces

CPU = torch.device("cpu")


@pytest.fixture
def native() -> Kernels:
    try:
        return kernels_for(CPU, torch.float32, KernelChoice.NATIVE)
    except FailedPrecondition as error:
        pytest.skip(error.message)


def test_calls_run_in_order_when_the_block_ends(native: Kernels) -> None:
    y = torch.full((3, 20), -2.0)
    with native.together() as kernels:
        kernels.dense.activate_(y, Activation.RELU)
        pooled = kernels.dense.pool(y + 0, Spans.of([(0, 3)], CPU))
        unit = kernels.dense.unit_(kernels.dense.join([y, torch.ones(1, 20)]))
        assert y.eq(-2).all(), "nothing ran yet"
    assert y.eq(0).all()
    assert pooled.eq(-2).all(), "of the copy that was made before"
    torch.testing.assert_close(unit[3], torch.full((20,), 20**-0.5))


def test_what_calls_use_lives_until_they_ran(native: Kernels) -> None:
    truth, found = [], []
    with native.together() as kernels:
        for seed in range(200):
            x = torch.full((64, 64), float(seed))
            truth.append(x.clone())
            found.append(kernels.dense.join([x]))
            del x  # its memory would be the next one's
    for one, other in zip(truth, found, strict=True):
        assert torch.equal(one, other)


def test_a_block_that_raises_runs_nothing(native: Kernels) -> None:
    y = torch.full((3, 20), -2.0)
    with pytest.raises(IndexError, match="rows 5 to 5"), native.together() as kernels:
        kernels.dense.activate_(y, Activation.RELU)
        kernels.dense.select(y, torch.tensor([5]))
    assert y.eq(-2).all()
    with native.together() as kernels:
        kernels.dense.activate_(y, Activation.RELU)
    assert y.eq(0).all(), "the next block is as good as new"


def test_a_block_in_a_block_runs_with_it(native: Kernels) -> None:
    y = torch.full((3, 20), -2.0)
    with native.together() as outer:
        with outer.together() as inner:
            inner.dense.activate_(y, Activation.RELU)
        assert y.eq(-2).all()
    assert y.eq(0).all()


def test_eager_kernels_run_at_once() -> None:
    y = torch.full((3, 20), -2.0)
    with EAGER.together() as kernels:
        assert kernels is EAGER
        kernels.dense.activate_(y, Activation.RELU)
        assert y.eq(0).all()
        assert kernels.room.take(Slot.QKV, 3, 20, torch.float32) is None


def test_no_memory_is_an_error_and_no_more(native: Kernels) -> None:
    """A row too wide for the scratch that holds it as floats; the row itself is never touched."""
    assert native.native is not None
    library, width = native.native.entries, 1 << 46
    function = library.function("add_norm", torch.float32)
    norm = (0, 0, real(1e-5))
    with pytest.raises(MemoryError):
        library.run((function, 12, *(0, 0) * 3, *norm, 1, width, 1))
    y = torch.full((3, 20), -2.0)
    assert native.dense.activate_(y, Activation.RELU).eq(0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are the process's")
def test_who_gives_way_computes_the_same_when_nobody_else_wants_to(native: Kernels) -> None:
    """In a thread of the lowest class that stands in for it, and ends with it."""
    assert native.native is not None
    library, norm = native.native.entries, (0, 0, real(1e-5))
    too_wide = (library.function("add_norm", torch.float32), 12, *(0, 0) * 3, *norm, 1, 1 << 46, 1)

    def computed() -> tuple[torch.Tensor, int, list[int]]:
        native.give_way()
        y = torch.full((3, 20), -2.0)
        with native.together() as kernels:
            kernels.dense.activate_(y, Activation.RELU)
        with pytest.raises(MemoryError):
            library.run(too_wide)
        with native.together() as kernels:
            joined = kernels.dense.join([y, torch.ones(1, 20)])
        return joined, os.sched_getscheduler(threading.get_native_id()), _idle_threads()

    with ThreadPoolExecutor(1) as pool:
        found, own, idle = pool.submit(computed).result(timeout=30)
    assert found[:3].eq(0).all() and found[3].eq(1).all()
    assert own == os.SCHED_OTHER
    assert len(idle) == 1
    until = time.monotonic() + 10
    while _idle_threads():  # Python's thread is joined a moment before the system's ends
        assert time.monotonic() < until, "it outlives whom it stood in for"


def _idle_threads() -> list[int]:
    found = []
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # one that has ended meanwhile
            if os.sched_getscheduler(thread) == os.SCHED_IDLE:
                found.append(thread)
    return found


def test_a_function_that_is_not_there() -> None:
    handle = load(Places()).handle
    if handle is None:
        pytest.skip("no library")
    with pytest.raises(AttributeError, match="smile_nothing"):
        Library(handle).function("nothing")


def test_a_slot_is_used_again_and_grows() -> None:
    workspace = Workspace()
    small = workspace.take(Slot.WIDE, 4, 8, torch.float32)
    again = workspace.take(Slot.WIDE, 8, 4, torch.float32)
    other = workspace.take(Slot.QKV, 4, 8, torch.float32)
    rough = workspace.take(Slot.WIDE, 4, 8, torch.bfloat16)
    large = workspace.take(Slot.WIDE, 400, 8, torch.float32)
    least = workspace.take(Slot.WIDE, 1, 8, torch.float32)
    places = [
        one.data_ptr() for one in (small, again, other, rough, large, least) if one is not None
    ]
    assert len(places) == 6
    assert places[0] == places[1] and places[4] == places[5]
    assert len({*places[1:5]}) == 4
    assert large is not None and large.shape == (400, 8)


def test_a_borrowed_workspace_is_nobody_elses() -> None:
    workspaces = Workspaces()
    with workspaces.borrowed() as one, workspaces.borrowed() as other:
        assert one is not other
    with pytest.raises(ZeroDivisionError), workspaces.borrowed() as again:
        assert again is one, "last used, first given"
        raise ZeroDivisionError
    with workspaces.borrowed() as after:
        assert after is one
