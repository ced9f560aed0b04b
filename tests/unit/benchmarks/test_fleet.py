from __future__ import annotations

import asyncio
import stat
from collections import Counter
from pathlib import Path

from benchmarks.harness.fleet import FILE, KINDS, PETS, Fleet, Member, Plan, by_edges


def test_kinds_have_the_shares_of_the_claim() -> None:
    assert Counter(KINDS) == {"pfeiffer": 4, "lora": 3, "bitfit": 2, "houlsby": 1}
    assert all(str(pet.kind) == kind for kind, pet in PETS.items())
    assert [kind for kind, _ in Plan(10, 1).pets] == list(KINDS)


def test_a_fleet_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    fleet = Fleet(
        ("a-key", "another"), (Member(0, "vplm-0", "lora"), Member(1, "vplm-1", "bitfit"))
    )
    assert Fleet.load(tmp_path) is None
    fleet.save(tmp_path)
    assert Fleet.load(tmp_path) == fleet
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_the_edges_are_done_one_at_a_time() -> None:
    under_way, widest, order = 0, [0] * 1_000, []

    async def act(number: int) -> None:
        nonlocal under_way
        under_way += 1
        widest[number] = under_way
        order.append(number)
        await asyncio.sleep(0)
        under_way -= 1

    asyncio.run(by_edges(1_000, act, 4))
    assert sorted(order) == list(range(1_000))
    assert set(widest[:100]) == set(widest[-100:]) == {1}
    assert max(widest[100:-100]) == 4


def test_few_are_all_edge() -> None:
    done: list[int] = []

    async def act(number: int) -> None:
        done.append(number)

    asyncio.run(by_edges(7, act, 4))
    assert done == list(range(7))
