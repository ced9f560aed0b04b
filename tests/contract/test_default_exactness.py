"""What a vPLM says of how it is answered: stored, changed, followed as far as a processor can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import smile
from smile.errors import Aborted, InvalidSpec
from smile.model.backbone import Backbone
from smile.model.toy import write_toy_backbone
from smile.resources import Exactness
from tests.contract.materialized_world import Encoder
from tests.contract.platform_world import platform_world
from tests.contract.processor_world import World, processor_world

pytestmark = pytest.mark.asyncio
TEXT = "a slow train and a cold river"


async def test_it_is_stored_changed_and_told_with_versions() -> None:
    pet = smile.Pfeiffer(rank=4, first_layer=2)
    async with platform_world("acme") as platform, platform.client("acme") as client:
        plain = await client.create_vplm("plain", backbone="toy", pet=pet)
        made = await client.create_vplm(
            "topics", backbone="toy", pet=pet, labels=["a", "b"], exactness="materialized"
        )
        assert (plain.exactness, made.exactness) == (None, Exactness.MATERIALIZED)
        assert (await client.vplm("topics")).exactness is Exactness.MATERIALIZED
        for number in (None, 1):
            assert (await client.version("topics", number)).exactness is Exactness.MATERIALIZED
        answered = await client.infer("topics", TEXT)
        assert answered.exactness is Exactness.EXACT, "this processor has no local encoder"
        changed = await client.update_vplm("topics", exactness=Exactness.EXACT)
        assert changed.exactness is Exactness.EXACT
        assert (await client.version("topics")).exactness is Exactness.EXACT
        named = await client.update_vplm("topics", display_name="Topics")
        assert named.exactness is Exactness.EXACT, "it was not named"
        with pytest.raises(Aborted):
            await client.update_vplm("topics", exactness="materialized", etag=made.etag)
        with pytest.raises(InvalidSpec):
            await client.update_vplm("topics", exactness="nearly")


def said(world: World, name: str, pet: str) -> None:
    """A vPLM that says it is answered materialised."""
    version = world.add("acme", name, pet=pet)
    storage = world.storage
    storage.versions[version.name] = replace(version, exactness=Exactness.MATERIALIZED)


async def test_a_processor_follows_it_where_nobody_says_otherwise(tmp_path: Path) -> None:
    folder = write_toy_backbone(tmp_path / "toy")
    encoder = Encoder.make(Backbone.load(folder, "toy"), tmp_path / "encoder")
    settings: dict[str, Any] = {"skip": f"toy={encoder.path}"}
    async with processor_world(folder, **settings) as world:
        await world.ready()
        said(world, "wished", "pfeiffer")
        said(world, "low", "houlsby")
        async with world.client("acme") as client:
            assert (await client.infer("wished", TEXT)).exactness is Exactness.MATERIALIZED
            exactly = await client.infer("wished", TEXT, exactness="exact")
            assert exactly.exactness is Exactness.EXACT
            below = await client.infer("low", TEXT)
            assert below.exactness is Exactness.EXACT, "its module begins below the boundary"
            both = await client.infer_fanout(TEXT, ["wished", "low"])
            assert [answer.exactness for answer in both.answers] == [
                Exactness.MATERIALIZED,
                Exactness.EXACT,
            ]
            await client.rent("wished", weight=2)
            assert (await client.infer("wished", TEXT)).exactness is Exactness.MATERIALIZED
            await client.rent("wished", exactness="exact")
            assert (await client.infer("wished", TEXT)).exactness is Exactness.EXACT
