"""One text to many vPLMs over real connections: answers of their own, errors of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from services.processor.fanout import LOOK_UPS_MAX
from smile import errors
from smile.errors import SmileError
from smile.model import weights
from smile.model.toy import write_toy_backbone
from smile.resources import Canary, FanoutAnswer, FanoutResult
from tests.contract.processor_world import (
    HEADS,
    PETS,
    World,
    module_spec,
    processor_world,
    random_tensors,
)
from tests.contract.test_processor import TEXTS, check_one

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = TEXTS[2]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    backbone: Path = write_toy_backbone(tmp_path_factory.mktemp("toy"))
    async with processor_world(backbone) as world:
        yield world


def name(vplm: str, tenant: str = "acme") -> str:
    return f"tenants/{tenant}/vplms/{vplm}"


def check(world: World, result: FanoutResult, names: list[str]) -> None:
    """Every entry is the reference's answer of its own vPLM."""
    for asked, entry in zip(names, result.entries, strict=True):
        assert isinstance(entry, FanoutAnswer), entry
        version = world.storage.versions[entry.version]
        assert entry.version.startswith(asked.partition("@")[0].replace("/-/", "/acme/"))
        assert (entry.digest, entry.origin) == (version.digest, version.origin)
        check_one(world, entry.version, TEXT, entry.prediction)


async def test_every_kind_and_task_at_once_in_order(world: World) -> None:
    names: list[str] = []
    for pet in PETS:
        for head in HEADS:
            world.add("acme", f"all-{pet}-{head}", pet=pet, head=head, seed=len(names))
            names.append(name(f"all-{pet}-{head}"))
    cold = await world.infer_fanout("acme", TEXT, names)
    check(world, cold, names)
    assert cold.timings.load_s > 0
    warm = await world.infer_fanout("acme", TEXT, names[::-1])
    check(world, warm, names[::-1])
    assert warm.timings.batch_vplms == len(names), "they ride together"
    assert 0 < warm.timings.compute_s <= warm.timings.total_s
    assert warm.timings.load_s == 0
    one = await world.infer("acme", names[3], [TEXT])
    entry = warm.entries[::-1][3]
    assert isinstance(entry, FanoutAnswer)
    assert one.version == entry.version


async def test_more_than_a_batch_holds_and_than_are_looked_up_at_a_time(world: World) -> None:
    count = LOOK_UPS_MAX * 3
    for index in range(count):
        world.add("acme", f"many-{index}", pet=list(PETS)[index % len(PETS)], seed=index)
    names = [name(f"many-{index}") for index in range(count)]
    check(world, await world.infer_fanout("acme", TEXT, names), names)


async def test_one_vplm_asked_in_several_ways(world: World) -> None:
    first = world.add("acme", "ways", seed=1)
    second = world.add("acme", "ways", seed=2)
    world.storage.aliases[name("ways"), "old"] = 1
    asked = [name("ways"), f"{name('ways')}@old", first.name, name("ways", "-"), name("ways")]
    await world.infer_fanout("acme", TEXT, asked)
    before = world.stats.texts_total
    result = await world.infer_fanout("acme", TEXT, asked)
    check(world, result, asked)
    expected = [second.name, first.name, first.name, second.name, second.name]
    assert [entry.version for entry in result.answers] == expected
    assert result.timings.batch_vplms == 2, "each version is computed once"
    assert world.stats.texts_total - before == len(asked)


async def test_errors_stay_with_their_entries(world: World) -> None:
    names = []
    for index in range(6):
        world.add("acme", f"part-{index}", pet=list(PETS)[index % 4], seed=index)
        names.append(name(f"part-{index}"))
    spec = module_spec(world.backbone)
    tensors = {k: np.full_like(v, 3e38) for k, v in random_tensors(spec, world.backbone, 9).items()}
    data = weights.encode(tensors, spec)
    world.storage.put(name("poisoned"), spec, data)
    rotten = world.add("acme", "rotten", seed=3)
    world.storage.lie(rotten.name, b"rot", digest=False)
    odd = replace(spec, backbone_digest="0" * 64)
    world.storage.put(
        name("other-digest"), odd, weights.encode(random_tensors(spec, world.backbone, 1), odd)
    )
    world.add("rival", "secret", seed=4)
    bad = {
        name("poisoned"): errors.DataCorrupted,
        name("rotten"): errors.DataCorrupted,
        name("other-digest"): errors.FailedPrecondition,
        name("secret", "rival"): errors.NotFound,
        name("absent"): errors.NotFound,
        f"{name('part-0')}@absent": errors.NotFound,
        f"{name('part-0')}/versions/9": errors.NotFound,
    }
    asked = [one for pair in zip(names, bad, strict=False) for one in pair] + list(bad)[6:]
    for _ in range(2):  # cold and warm
        result = await world.infer_fanout("acme", TEXT, asked)
        for one, entry in zip(asked, result.entries, strict=True):
            if one in bad:
                assert type(entry) is bad[one], (one, entry)
            else:
                assert isinstance(entry, FanoutAnswer)
                check_one(world, entry.version, TEXT, entry.prediction)
        with pytest.raises(errors.SmileError):
            _ = result.answers


async def test_foreign_and_absent_look_the_same(world: World) -> None:
    world.add("rival", "hidden", seed=4)
    told = []
    for one in (name("hidden", "rival"), name("hidden"), name("nothing", "nobody")):
        (entry,) = (await world.infer_fanout("acme", TEXT, [one])).entries
        assert isinstance(entry, SmileError)
        told.append(
            (type(entry), entry.reason, entry.message.replace(one, "X"), set(entry.metadata))
        )
    assert len(set(map(str, told))) == 1


async def test_a_canary_answers_for_its_keys(world: World) -> None:
    versions = [world.add("acme", "split", seed=seed) for seed in (1, 2)]
    world.storage.aliases[name("split"), "serving"] = 1
    world.storage.canaries[name("split"), "serving"] = Canary(2, 0.5)
    seen = set()
    for index in range(16):
        key = f"k{index}"
        (entry,) = (
            await world.infer_fanout("acme", TEXT, [name("split")], routing_key=key)
        ).answers
        one = await world.infer("acme", name("split"), [TEXT], routing_key=key)
        assert one.version == entry.version, "the same key, the same version"
        seen.add(entry.version)
    assert seen == {version.name for version in versions}


async def test_what_refuses_all(world: World) -> None:
    world.add("acme", "fine", seed=1)
    names = [name("fine")]
    with pytest.raises(errors.TextEmpty):
        await world.infer_fanout("acme", " ", names)
    with pytest.raises(errors.TextTooLong):
        await world.infer_fanout("acme", "war " * 5_000, names)
    cut = await world.infer_fanout("acme", "war " * 5_000, names, truncate=True)
    assert cut.answers[0].prediction.truncated
    for wrong in ([], names * 1_001):
        with pytest.raises(errors.InvalidArgument, match="targets"):
            await world.infer_fanout("acme", TEXT, wrong)
    with pytest.raises(errors.InvalidName):
        await world.infer_fanout("acme", TEXT, [*names, "tenants/acme/datasets/fine"])
    with pytest.raises(errors.InvalidArgument, match="version or an alias"):
        await world.infer_fanout("acme", TEXT, [f"{name('fine')}/versions/1@next"])
    with pytest.raises(errors.DeadlineExceeded):
        world.add("acme", "slow", seed=7_777)
        world.storage.gate = asyncio.Event()
        try:
            await world.infer_fanout("acme", TEXT, [*names, name("slow")], timeout_s=0.3)
        finally:
            world.storage.gate.set()
            world.storage.gate = None
    check(world, await world.infer_fanout("acme", TEXT, names * 1_000), names * 1_000)


async def test_nothing_is_left_behind(world: World) -> None:
    world.add("acme", "last", seed=1)
    await world.infer_fanout("acme", TEXT, [name("last"), name("absent")])
    pipeline = world.processor.pipeline
    assert (pipeline._gathering._groups, pipeline._demand._waiters) == ({}, {})
    assert pipeline._parts.admission.inside.texts == 0
    assert world.stats.queue_texts == 0


async def test_backbones_must_not_differ(tmp_path: Path) -> None:
    first, second = (write_toy_backbone(tmp_path / each) for each in ("one", "two"))
    async with processor_world(first, backbones=f"toy=dir:{first},other=dir:{second}") as world:
        world.add("acme", "here", seed=1)
        spec = replace(module_spec(world.backbone), backbone="other")
        data = weights.encode(random_tensors(spec, world.backbone, 2), spec)
        world.storage.put(name("there"), spec, data)
        await world.infer("acme", name("there"), [TEXT])
        with pytest.raises(errors.InvalidArgument) as caught:
            await world.infer_fanout("acme", TEXT, [name("here"), name("there")])
        assert caught.value.reason == "FANOUT_BACKBONES_DIFFER"
        assert name("here") in caught.value.message and "'other'" in caught.value.message


async def test_what_has_answered_is_not_kept_from_what_is_to_come(tmp_path: Path) -> None:
    """A module that a fan-out is through with left memory, and somebody brings it back."""
    async with processor_world(write_toy_backbone(tmp_path)) as world:
        names = [name("first"), name("second")]
        for seed, vplm in enumerate(("first", "second")):
            world.add("acme", vplm, seed=seed)
        await world.infer("acme", names[0], [TEXT])
        pipeline, gate = world.processor.pipeline, asyncio.Event()
        residency = pipeline._parts.dispatch._residency
        for tier in (residency.host, residency.device):
            tier.space.bytes_max = residency.host.space.nbytes * 3 // 2
        world.storage.gate = gate
        asking = asyncio.create_task(world.infer_fanout("acme", TEXT, names))
        async with asyncio.timeout(5):
            while (  # noqa: ASYNC110 -- threads have no event
                world.storage.asked["download"] < 2 or world.stats.batches_total < 2
            ):
                await asyncio.sleep(0.01)
        assert pipeline.demand.sweep(0.0) == 1
        world.storage.gate = None  # of those that come from now on
        async with world.client("acme") as client:
            await client.rent("first", wait=True, timeout=5)
        gate.set()
        check(world, await asyncio.wait_for(asking, 5), names)
        assert world.stats.module_evictions_total == 1, "there was room for one"
