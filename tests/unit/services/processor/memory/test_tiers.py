"""Slots in slabs and who gets them: never over budget, no room lost to how it is divided."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.processor.memory.policy import LeastRecentlyUsed, S3Fifo
from services.processor.memory.space import Slot, Space
from services.processor.memory.tiers import Tier

BUDGET = 1_000
SIZES = ((7,), (40,), (100,), (170,), (40, 7), (100, 12), (170, 12))


class Ledger:
    """A backing that knows what it holds, and refuses what must not be."""

    def __init__(self, *, by_row: bool) -> None:
        self.by_row = by_row
        self.slabs: dict[int, tuple[int, int]] = {}
        self.used: set[Slot] = set()

    @property
    def nbytes(self) -> int:
        if self.by_row:
            return sum(slot.row_bytes for slot in self.used)
        return sum(slots * row_bytes for slots, row_bytes in self.slabs.values())

    def open(self, slab: int, slots: int, row_bytes: int) -> None:
        assert slab not in self.slabs
        self.slabs[slab] = (slots, row_bytes)

    def use(self, slot: Slot) -> None:
        slots, row_bytes = self.slabs[slot.slab]
        assert slot not in self.used and slot.index < slots and slot.row_bytes == row_bytes
        self.used.add(slot)

    def free(self, slot: Slot) -> None:
        self.used.remove(slot)

    def close(self, slab: int) -> None:
        assert not any(slot.slab == slab for slot in self.used)
        del self.slabs[slab]


def tier_of(ledger: Ledger, left: list[str], slab_bytes: int = 200) -> Tier[str]:
    space = Space(BUDGET, slab_bytes=slab_bytes, granule=4, backing=ledger)
    return Tier(space, LeastRecentlyUsed(), left.append)


def fill(tier: Tier[str], name: str, *sizes: int) -> bool:
    admitted = tier.admit(name, sizes) is not None
    if admitted:
        tier.free(name)
    return admitted


def test_slots_of_a_class_share_slabs() -> None:
    ledger = Ledger(by_row=True)
    space = Space(BUDGET, slab_bytes=100, granule=4, backing=ledger)
    slots = [space.take((37,))[0] for _ in range(5)]
    assert [(slot.row_bytes, slot.slab, slot.index) for slot in slots] == [
        (40, 0, 0),
        (40, 0, 1),
        (40, 1, 0),
        (40, 1, 1),
        (40, 2, 0),
    ]
    assert space.nbytes == ledger.nbytes == 200
    space.give(slots[:2])
    assert set(ledger.slabs) == {1, 2}, "an empty slab is closed"
    space.give(slots[2:])
    assert (space.nbytes, ledger.slabs) == (0, {})


def test_rows_of_any_class_use_what_another_class_gave_back() -> None:
    left: list[str] = []
    tier = tier_of(Ledger(by_row=True), left)
    for number in range(25):
        assert fill(tier, f"small{number}", 40)
    assert fill(tier, "large", 160)
    assert left == ["small0", "small1", "small2", "small3"], "no more than needed"


def test_a_slab_is_emptied_for_another_class() -> None:
    left: list[str] = []
    ledger = Ledger(by_row=False)
    tier = tier_of(ledger, left)
    for number in range(25):
        assert fill(tier, f"small{number}", 40)
    tier.hold("small7")
    assert fill(tier, "large", 160)
    assert left == [f"small{number}" for number in range(5)], "the coldest one's slab"
    assert tier.space.nbytes == ledger.nbytes == BUDGET - 200 + 160


def test_one_of_the_own_class_leaves_that_is_about_as_cold() -> None:
    left: list[str] = []
    tier = tier_of(Ledger(by_row=False), left)
    for number in range(10):
        assert fill(tier, f"small{number}", 40)
    for number in range(3):
        assert fill(tier, f"large{number}", 200)
    assert fill(tier, "another", 200)
    assert left == ["large0"], "ten are colder, but that is not what one of them would bring"
    assert fill(tier, "small", 40)
    assert left == ["large0", "small0"]


def test_what_is_held_stays_even_if_that_means_waiting() -> None:
    left: list[str] = []
    tier = tier_of(Ledger(by_row=True), left)
    for number in range(10):
        assert tier.admit(f"held{number}", (100,)) is not None
    assert tier.admit("more", (4,)) is None
    tier.free("held3")
    assert tier.admit("more", (4,)) is not None
    assert left == ["held3"]


def test_memory_that_the_system_refuses_is_not_counted() -> None:
    class Poor(Ledger):
        def use(self, slot: Slot) -> None:
            if slot.row_bytes == 12:
                raise OSError("no memory")
            super().use(slot)

    ledger = Poor(by_row=True)
    tier = tier_of(ledger, [])
    with pytest.raises(OSError, match="no memory"):
        tier.admit("a", (40, 12))
    assert (tier.space.nbytes, ledger.used, len(tier)) == (0, set(), 0)
    assert fill(tier, "b", BUDGET)


@pytest.mark.parametrize("by_row", [True, False])
def test_what_can_never_fit_is_known(by_row: bool) -> None:
    space = Space(BUDGET, slab_bytes=200, granule=4, backing=Ledger(by_row=by_row))
    assert space.holds((BUDGET,))
    assert not space.holds((BUDGET + 1,))
    assert not space.holds((BUDGET - 8, 12))


class Machine(RuleBasedStateMachine):
    """Any order of admissions and leavings under any mix of classes."""

    by_row = True
    names = st.integers(0, 40).map(str)

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(by_row=type(self).by_row)
        self.left: list[str] = []
        space = Space(BUDGET, slab_bytes=200, granule=4, backing=self.ledger)
        self.tier: Tier[str] = Tier(space, S3Fifo(), self.left.append)
        self.inside: dict[str, tuple[Slot, ...]] = {}
        self.holds: Counter[str] = Counter()

    def settle(self) -> None:
        """Who has left was not held."""
        for name in self.left:
            assert not self.holds[name]
            del self.inside[name]
        self.left.clear()

    @rule(name=names, sizes=st.sampled_from(SIZES))
    def admit(self, name: str, sizes: tuple[int, ...]) -> None:
        if name in self.inside:
            return
        before = len(self.inside)
        slots = self.tier.admit(name, sizes)
        self.settle()
        if slots is None:
            assert self.holds.total(), "an empty cache has room for anything"
            if self.by_row:
                assert len(self.inside) == before, "nobody leaves for nothing"
            return
        self.inside[name] = slots
        self.holds[name] = 1

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.inside)))
        self.tier.hold(name)
        self.holds[name] += 1

    @precondition(lambda self: self.holds.total())
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(+self.holds)))
        self.tier.free(name)
        self.holds[name] -= 1

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def use_or_remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.inside)))
        if data.draw(st.booleans()) or self.holds[name]:
            self.tier.touch(name)
        else:
            self.tier.remove(name)
            del self.inside[name]

    @invariant()
    def books_balance(self) -> None:
        assert self.tier.space.nbytes == self.ledger.nbytes <= BUDGET
        slots = [slot for taken in self.inside.values() for slot in taken]
        assert self.ledger.used == set(slots) and len(slots) == len(set(slots))
        assert all(self.tier.slots(name) == taken for name, taken in self.inside.items())
        assert len(self.tier) == len(self.inside)

    def teardown(self) -> None:
        """With nobody held any module finds room, and all memory is given back."""
        for name, count in self.holds.items():
            for _ in range(count):
                self.tier.free(name)
        self.holds.clear()
        for sizes in SIZES:
            assert self.tier.admit(f"last{sizes}", sizes) is not None, "progress"
            self.settle()
            self.tier.free(f"last{sizes}")
            self.inside[f"last{sizes}"] = ()
        for name in list(self.inside):
            self.tier.remove(name)
        assert (self.tier.space.nbytes, self.ledger.slabs) == (0, {})


class SlabMachine(Machine):
    by_row = False


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestSlabMachine = SlabMachine.TestCase
TestSlabMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
