"""vPLMs deleted and created again under the same name, between being looked up and being loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from smile import errors
from smile.model.toy import write_toy_backbone
from smile.processors import ProcessorState
from smile.resources import FanoutAnswer
from tests.contract.processor_world import World, processor_world
from tests.contract.test_processor import check, check_one

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "the star of the team"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    backbone: Path = write_toy_backbone(tmp_path_factory.mktemp("toy"))
    async with processor_world(backbone, resolve_ttl_s=30, module_failed_s=30) as world:
        yield world


async def looked_up(world: World, vplm: str, seed: int = 1) -> str:
    """A vPLM that the processor knows where to find, and does not have in memory."""
    name = f"tenants/acme/vplms/{vplm}"
    world.add("acme", vplm, seed=seed)
    await world.infer("acme", name, [TEXT])
    world.processor.pipeline.demand.sweep(0.0)
    return name


async def test_another_one_of_the_same_name_answers(world: World) -> None:
    name = await looked_up(world, "again")
    world.storage.delete(name)
    now = world.add("acme", "again", pet="lora", head="near", seed=2)
    result = await world.infer("acme", name, [TEXT])
    assert (result.version, result.digest) == (now.name, now.digest)
    check(world, result, [TEXT])


async def test_a_version_in_particular_is_the_one_of_now(world: World) -> None:
    name = f"{await looked_up(world, 'first')}/versions/1"
    await world.infer("acme", name, [TEXT])
    world.processor.pipeline.demand.sweep(0.0)
    world.storage.delete("tenants/acme/vplms/first")
    now = world.add("acme", "first", seed=2)
    assert (await world.infer("acme", name, [TEXT])).digest == now.digest


async def test_one_deleted_is_gone_and_nothing_of_it_is_remembered(world: World) -> None:
    name = await looked_up(world, "brief")
    world.storage.delete(name)
    with pytest.raises(errors.NotFound, match="vplms/brief"):
        await world.infer("acme", name, [TEXT])
    now = world.add("acme", "brief", seed=1)
    assert (await world.infer("acme", name, [TEXT])).digest == now.digest, "the very same bytes"


async def test_another_vplm_of_the_same_bytes_is_not_affected(world: World) -> None:
    name = await looked_up(world, "one")
    world.add("acme", "two", seed=1)
    world.storage.delete(name)
    with pytest.raises(errors.NotFound):
        await world.infer("acme", name, [TEXT])
    assert (await world.infer("acme", "tenants/acme/vplms/two", [TEXT])).predictions


async def test_each_of_a_fan_out_is_looked_up_again_by_itself(world: World) -> None:
    names = [await looked_up(world, vplm) for vplm in ("stays", "changes", "goes")]
    for name in names[1:]:
        world.storage.delete(name)
    now = world.add("acme", "changes", pet="bitfit", seed=2)
    world.processor.pipeline.demand.sweep(0.0)
    stays, changes, goes = (await world.infer_fanout("acme", TEXT, names)).entries
    assert isinstance(stays, FanoutAnswer) and isinstance(changes, FanoutAnswer)
    assert changes.digest == now.digest
    for entry in (stays, changes):
        check_one(world, entry.version, TEXT, entry.prediction)
    assert type(goes) is errors.NotFound


async def test_renting_warms_the_one_of_now(world: World) -> None:
    name = await looked_up(world, "rented")
    world.storage.delete(name)
    world.add("acme", "rented", seed=2)
    async with world.client("acme") as client:
        assert (await client.rent("rented", wait=True)).state is not ProcessorState.COLD
    downloads = world.storage.asked["download"]
    assert (await world.infer("acme", name, [TEXT])).timings.load_s == 0
    assert world.storage.asked["download"] == downloads


async def test_bytes_that_are_not_the_manifests_stay_corrupt(world: World) -> None:
    name = await looked_up(world, "rotten")
    world.storage.lie(f"{name}/versions/1", b"rot", digest=False)
    with pytest.raises(errors.DataCorrupted):
        await world.infer("acme", name, [TEXT])
    asked = world.storage.asked["resolve"]
    with pytest.raises(errors.DataCorrupted):
        await world.infer("acme", name, [TEXT])
    assert world.storage.asked["resolve"] == asked


async def test_bytes_that_come_along_are_not_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.storage, "brings", True)
    downloads = world.storage.asked["download"]
    name = await looked_up(world, "along", seed=11)
    assert world.storage.asked["download"] == downloads
    result = await world.infer("acme", name, [TEXT])  # it had left memory
    check(world, result, [TEXT])
    assert world.storage.asked["download"] == downloads + 1


async def test_bytes_that_come_along_and_are_wrong_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.storage, "brings", True)
    wrong = world.add("acme", "wrong", seed=12)
    world.storage.lie(wrong.name, b"not these", digest=False)
    with pytest.raises(errors.DataCorrupted):
        await world.infer("acme", "tenants/acme/vplms/wrong", [TEXT])
