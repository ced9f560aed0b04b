"""The creator through its RPCs, over real storage."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import smile
from smile.model import weights
from tests.contract.sdk_world import World, new_uuid, world

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def platform() -> AsyncIterator[World]:
    async with world("acme", "rival") as made:
        yield made


async def test_backbones_are_listed_and_found(platform: World) -> None:
    async with platform.client("acme") as client:
        (toy,) = await client.backbones()
        assert (toy.name, toy.family, toy.shape.layers) == ("backbones/toy", "bert", 4)
        assert len(toy.digest) == 64
        assert await client.backbone("toy") == toy
        with pytest.raises(smile.NotFound, match="there are: toy"):
            await client.backbone("gone")


@pytest.mark.parametrize(
    "pet",
    [
        smile.NoPet(),
        smile.Pfeiffer(rank=4),
        smile.Houlsby(rank=3, first_layer=0),
        smile.LoRA(rank=2, targets=["value", "query", "intermediate"]),
        smile.BitFit(),
        smile.DiffPruning(first_layer=1),
        smile.MaskBert(0.02),
    ],
    ids=lambda pet: str(pet.kind),
)
async def test_a_vplm_of_every_kind_is_created_with_usable_weights(
    platform: World, pet: smile.PetSpec, tmp_path: Path
) -> None:
    async with platform.client("acme") as client:
        (toy,) = await client.backbones()
        start = time.monotonic()
        made = await client.create_vplm("topic", backbone="toy", pet=pet, labels=["a", "b", "c"])
        assert time.monotonic() - start < 1.0
        assert made.name == "tenants/acme/vplms/topic"
        assert made.spec.pet == pet.placed(toy.shape)
        assert made.spec.backbone_digest == toy.digest
        assert made.aliases == {"serving": 1} and made.latest_version == 1
        assert made.etag and made.uid and made.create_time is not None
        version = await client.download_version("topic", tmp_path / "topic.safetensors")
        assert version.origin is smile.VersionOrigin.INITIAL
        data = (tmp_path / "topic.safetensors").read_bytes()
        assert len(data) == version.size_bytes
        tensors = weights.decode(data, made.spec, toy.shape)
        assert tensors["head.weight"].shape == (3, 32)
        still = (".up.", ".lora.b", ".delta.values", ".mask.", "r.bias")
        assert not any(
            array.any()
            for name, array in tensors.items()
            if any(part in name for part in still) and name != "head.weight"
        )


async def test_a_vplm_names_its_domain(platform: World) -> None:
    async with platform.client("acme") as client:
        pet = smile.Pfeiffer(rank=4)
        for name, domain in (("plain", ""), ("scores", "sport")):
            made = await client.create_vplm(name, backbone="toy", pet=pet, domain=domain)
            found = await client.vplm(name)
            version = await client.version(name, 1)
            assert made.spec.domain == found.spec.domain == version.spec.domain == domain
        digests = {(await client.version(name, 1)).digest for name in ("plain", "scores")}
        assert len(digests) == 1, "a domain changes no tensor"
        with pytest.raises(smile.InvalidArgument, match="domain"):
            await client.create_vplm("bad", backbone="toy", pet=pet, domain="../sport")


async def test_the_seed_decides_the_bytes(platform: World) -> None:
    async with platform.client("acme") as client:
        digests = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            await client.create_vplm(
                name, backbone="toy", pet=smile.Pfeiffer(rank=4), labels=["x", "y"], seed=seed
            )
            digests.append((await client.version(name)).digest)
    assert digests[0] == digests[1] != digests[2]


async def test_a_repeated_request_gives_the_first_answer_and_another_is_refused(
    platform: World,
) -> None:
    async with platform.client("acme") as client:
        request_id = new_uuid()
        pet = smile.Pfeiffer(rank=4)
        first, again = [
            await client.create_vplm(
                "topic", backbone="toy", pet=pet, labels=["a", "b"], request_id=request_id
            )
            for _ in range(2)
        ]
        assert again == first
        with pytest.raises(smile.AlreadyExists):
            await client.create_vplm("topic", backbone="toy", pet=pet, labels=["a", "b"])
        assert [vplm.name async for vplm in client.vplms()] == [first.name]


async def test_validate_only_creates_nothing_and_tells_a_taken_name(platform: World) -> None:
    async with platform.client("acme") as client:
        pet = smile.LoRA(rank=2)
        checked = await client.create_vplm(
            "topic", backbone="toy", pet=pet, labels=["a", "b"], validate_only=True
        )
        assert checked.spec.pet.first_layer == 2
        assert [vplm async for vplm in client.vplms()] == []
        await client.create_vplm("topic", backbone="toy", pet=pet, labels=["a", "b"])
        with pytest.raises(smile.AlreadyExists):
            await client.create_vplm(
                "topic", backbone="toy", pet=pet, labels=["a", "b"], validate_only=True
            )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backbone": "gone"}, smile.NotFound, "backbones/gone does not exist"),
        ({"pet": smile.Pfeiffer(rank=33)}, smile.InvalidSpec, "hidden width 32, got 33"),
        ({"pet": smile.BitFit(first_layer=4)}, smile.InvalidSpec, "4 layers, got 4"),
        ({"labels": ["a"]}, smile.InvalidSpec, "between 2 and 1000 labels, got 1"),
        ({"labels": ["a", "a"]}, smile.InvalidSpec, "repeat"),
        ({"labels": ["a", "b"], "task": "embedding"}, smile.InvalidSpec, "no labels"),
        ({"labels": ["a", "b" * 129]}, smile.InvalidSpec, "128 characters, got 129"),
        ({"labels": ["a", "\udc80"]}, smile.InvalidArgument, "not valid UTF-8"),
        ({"task": "poetry"}, smile.InvalidSpec, "task must be one of"),
        ({"precision": "int3"}, smile.InvalidSpec, "precision must be one of float16, float32"),
        ({"seed": -1}, smile.InvalidArgument, "seed"),
        ({"seed": 1 << 80}, smile.InvalidArgument, "does not fit"),
        ({"display_name": "x" * 201}, smile.InvalidArgument, "display_name"),
        ({"tags": {str(n): "" for n in range(33)}}, smile.InvalidArgument, "labels"),
        ({"request_id": "again"}, smile.InvalidArgument, "request_id"),
    ],
)
async def test_bad_recipes_are_refused_with_limit_and_value(
    platform: World, changes: dict[str, object], error: type[smile.SmileError], message: str
) -> None:
    options = {"backbone": "toy", "pet": smile.Pfeiffer(rank=4), "labels": ["a", "b"], **changes}
    async with platform.client("acme") as client:
        with pytest.raises(error, match=message):
            await client.create_vplm("topic", **options)  # type: ignore[arg-type]
        assert [vplm async for vplm in client.vplms()] == []


@pytest.mark.parametrize(
    "name", ["", "../x", "Ä", "A", "a" * 64, "x" * 300, "a/b/c", "a\n", "-a", "a-", "tenants/acme"]
)
async def test_name_tricks_are_refused(platform: World, name: str) -> None:
    async with platform.client("acme") as client:
        for call in (client.vplm(name), client.delete_vplm(name)):
            with pytest.raises(smile.InvalidName):
                await call
        with pytest.raises(smile.InvalidName):
            await client.create_vplm(name, backbone="toy", pet=smile.NoPet(), labels=["a", "b"])


async def test_update_changes_what_the_mask_names(platform: World) -> None:
    async with platform.client("acme") as client:
        made = await client.create_vplm(
            "topic", backbone="toy", pet=smile.NoPet(), labels=["a", "b"], tags={"team": "x"}
        )
        named = await client.update_vplm("topic", display_name="Topics", etag=made.etag)
        assert (named.display_name, named.labels) == ("Topics", {"team": "x"})
        tagged = await client.update_vplm("topic", tags={})
        assert (tagged.display_name, tagged.labels) == ("Topics", {})
        assert tagged.etag != made.etag
        with pytest.raises(smile.Aborted):
            await client.update_vplm("topic", display_name="Lost", etag=made.etag)
        with pytest.raises(smile.InvalidArgument):
            await client.update_vplm("topic")
        assert (await client.vplm("topic")).display_name == "Topics"


async def test_delete_is_final_and_guarded_by_etag(platform: World) -> None:
    async with platform.client("acme") as client:
        made = await client.create_vplm("t", backbone="toy", pet=smile.NoPet(), labels=["a", "b"])
        with pytest.raises(smile.Aborted):
            await client.delete_vplm("t", etag="stale")
        await client.delete_vplm("t", etag=made.etag)
        with pytest.raises(smile.NotFound):
            await client.vplm("t")
        again = await client.create_vplm("t", backbone="toy", pet=smile.NoPet(), labels=["a", "b"])
        assert again.uid != made.uid


async def test_pages_cover_every_vplm_once_in_order(platform: World) -> None:
    names = [f"v{number:02d}" for number in range(7)]
    async with platform.client("acme") as client:
        for name in reversed(names):
            await client.create_vplm(name, backbone="toy", pet=smile.NoPet(), labels=["a", "b"])
        for size in (1, 3, 7, 100):
            found = [vplm.name async for vplm in client.vplms(page_size=size)]
            assert found == [f"tenants/acme/vplms/{name}" for name in names]
        with pytest.raises(smile.InvalidArgument):
            _ = [vplm async for vplm in client.vplms(page_size=-1)]


async def test_another_tenants_vplm_looks_absent(platform: World) -> None:
    async with platform.client("acme") as acme, platform.client("rival") as rival:
        await acme.create_vplm("topic", backbone="toy", pet=smile.NoPet(), labels=["a", "b"])
        assert [vplm async for vplm in rival.vplms()] == []
        foreign, absent = "tenants/acme/vplms/topic", "tenants/acme/vplms/nothing"
        for call in (rival.vplm, rival.delete_vplm, rival.version):
            answers = []
            for name in (foreign, absent):
                with pytest.raises(smile.NotFound) as raised:
                    await call(name)
                answers.append((raised.value.reason, raised.value.message.replace(name, "*")))
            assert answers[0] == answers[1]
        with pytest.raises(smile.NotFound):
            await rival.create_vplm(
                "tenants/acme/vplms/planted", backbone="toy", pet=smile.NoPet(), labels=["a", "b"]
            )
        assert len([vplm async for vplm in acme.vplms()]) == 1


async def test_a_quota_refuses_a_vplm_and_keeps_nothing(platform: World) -> None:
    await platform.add_tenant("small", quota_bytes=1000)
    async with platform.client("small") as client:
        with pytest.raises(smile.QuotaExceeded):
            await client.create_vplm(
                "topic", backbone="toy", pet=smile.Pfeiffer(rank=16), labels=["a", "b"]
            )
        assert [vplm async for vplm in client.vplms()] == []
