"""Versions, aliases and the trash through real servers, the SDK and the shell."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio
from typer.testing import CliRunner

import smile
from smile.cli.app import build
from tests.contract.sdk_world import World, world, world_in_thread

PET = smile.Pfeiffer(rank=4)


@pytest_asyncio.fixture
async def platform() -> AsyncIterator[World]:
    async with world("acme", "rival") as made:
        yield made


async def three_versions(client: smile.AsyncClient, folder: Path) -> None:
    """`topic`, with other weights in versions 2 and 3."""
    await client.create_vplm("topic", backbone="toy", pet=PET, labels=["a", "b"], seed=1)
    for seed in (2, 3):
        name = f"other-{seed}"
        await client.create_vplm(name, backbone="toy", pet=PET, labels=["a", "b"], seed=seed)
        await client.download_version(name, folder / name)
        await client.upload_version("topic", folder / name, note=f"seed {seed}")
        await client.delete_vplm(name, for_good=True)


@pytest.mark.asyncio
async def test_an_alias_goes_back_and_tells_where_it_was(platform: World, tmp_path: Path) -> None:
    async with platform.client("acme") as client:
        await three_versions(client, tmp_path)
        seen = await client.set_alias("topic", "serving", 2, canary=3, weight=0.25)
        await client.set_alias("topic", "serving", 3)
        with pytest.raises(smile.Aborted):
            await client.roll_back("topic", etag=seen.etag)
        back = await client.roll_back("topic")
        assert (back.aliases["serving"], back.canaries["serving"]) == (2, smile.Canary(3, 0.25))
        assert (await client.roll_back("topic")).aliases["serving"] == 1
        with pytest.raises(smile.FailedPrecondition) as caught:
            await client.roll_back("topic")
        assert caught.value.reason == "ALIAS_HAS_NO_PAST"
        moves = await client.alias_moves("topic", "serving")
        assert [(m.version, m.restores) for m in reversed(moves)] == [
            (1, 0), (2, 0), (3, 0), (2, 2), (1, 1),
        ]  # fmt: skip
        keys = [key.name async for key in client.keys()]  # noqa: SIM118 -- an iterator's name
        assert {move.by for move in moves} == {"", *keys}
        with pytest.raises(smile.NotFound):
            await client.alias_moves("topic", "nothing")


@pytest.mark.asyncio
async def test_two_versions_side_by_side(platform: World, tmp_path: Path) -> None:
    async with platform.client("acme") as client, platform.client("rival") as rival:
        await three_versions(client, tmp_path)
        same = await client.diff_versions("topic", 1, 1)
        assert same.same_bytes and (same.l2, same.relative) == (0.0, 0.0)
        diff = await client.diff_versions("topic", 1, 2)
        assert not diff.same_bytes and diff.l2 > 0 and diff.spec == ()
        assert math.isclose(diff.l2, math.sqrt(sum(t.l2**2 for t in diff.tensors)))
        back = await client.diff_versions("topic", 2, 1)
        assert back.l2 == diff.l2
        await client.create_vplm(
            "wide", backbone="toy", pet=smile.Pfeiffer(rank=2), labels=["b", "c", "d"]
        )
        other = await client.diff_versions("topic", 1, 1, other_vplm="wide")
        assert [(c.field, c.base, c.other) for c in other.spec] == [("pet.rank", "4", "2")]
        assert (other.labels_added, other.labels_removed) == (("c", "d"), ("a",))
        for absent in (("topic", 1, 9), ("nothing", 1, 1)):
            with pytest.raises(smile.NotFound):
                await client.diff_versions(*absent)
        with pytest.raises(smile.NotFound):
            await rival.diff_versions("tenants/acme/vplms/topic", 1, 2)


@pytest.mark.asyncio
async def test_what_is_deleted_can_be_had_back(platform: World, tmp_path: Path) -> None:
    async with platform.client("acme") as client:
        await three_versions(client, tmp_path)
        before = await client.vplm("topic")
        with pytest.raises(smile.FailedPrecondition) as caught:
            await client.delete_version("topic", 1)
        assert caught.value.reason == "VERSION_IN_USE"
        gone = await client.delete_version("topic", 3)
        assert gone.purge_time is not None and gone.delete_time is not None
        assert [v.number async for v in client.versions("topic")] == [2, 1]
        listed = [v async for v in client.versions("topic", show_deleted=True)]
        assert [(v.number, v.delete_time is not None) for v in listed] == [
            (3, True), (2, False), (1, False),
        ]  # fmt: skip
        usage = await client.usage()
        assert [row.versions for row in usage.vplms] == [2]

        await client.delete_vplm("topic")
        with pytest.raises(smile.NotFound):
            await client.vplm("topic")
        assert [v async for v in client.vplms()] == []
        (deleted,) = [v async for v in client.vplms(show_deleted=True)]
        assert deleted.uid == before.uid
        assert deleted.delete_time is not None and deleted.purge_time is not None
        usage = await client.usage()
        assert (usage.vplm_count, usage.vplms) == (0, ())
        assert usage.stored_bytes > 2 * gone.size_bytes, "until it is gone for good"

        again = await client.create_vplm("topic", backbone="toy", pet=PET, labels=["x", "y"])
        assert again.uid != before.uid
        with pytest.raises(smile.AlreadyExists):
            await client.undelete_vplm("topic")
        both = [v async for v in client.vplms(show_deleted=True, page_size=1)]
        assert [v.uid for v in both] == [again.uid, before.uid]
        await client.delete_vplm("topic")
        back = await client.undelete_vplm("topic", uid=before.uid)
        assert (back.uid, back.spec.head.labels) == (before.uid, ("a", "b"))
        assert (await client.undelete_version("topic", 3)).note == "seed 3"
        await client.delete_vplm("topic", for_good=True)
        with pytest.raises(smile.NotFound):
            await client.undelete_vplm("topic")
        assert [v async for v in client.vplms(show_deleted=True)] == []


class Typed(Protocol):
    """A command, its answer for programs, and what people see."""

    def __call__(self, *words: str, code: int = 0, people: bool = False) -> Any: ...


@pytest.fixture
def typed() -> Iterator[Typed]:
    with world_in_thread("acme") as made:
        environment = {"SMILE_API_KEY": made.keys["acme"], "SMILE_ENDPOINTS": made.endpoints}

        def run(*words: str, code: int = 0, people: bool = False) -> Any:
            told = [*words] if people else [*words, "-o", "json"]
            done = CliRunner().invoke(build(), told, env=environment)
            assert done.exit_code == code, (words, done.output)
            if people:
                return done.stdout + done.stderr
            return json.loads(done.stdout) if done.stdout else None

        yield run


def test_the_shell_does_the_same(typed: Typed, tmp_path: Path) -> None:
    made = ("--backbone", "toy", "--labels", "a,b", "--rank", "4", "--seed")
    typed("vplms", "create", "topic", *made, "1")
    typed("create", "other", *made, "2")
    weights = str(tmp_path / "weights")
    typed("versions", "download", "other", weights)
    typed("versions", "upload", "topic", weights)
    typed("alias", "topic", "serving", "2")
    typed("versions", "delete", "topic", "2", code=6)
    shown = typed("vplms", "rollback", "topic", people=True)
    assert "topic: serving is version 1 again" in shown
    moves = typed("vplms", "history", "topic")["moves"]
    assert [move["restores"] for move in moves] == [1, 0, 0]
    assert "rolled back to move 1" in typed("vplms", "history", "topic", "serving", people=True)
    typed("vplms", "rollback", "topic", code=6)

    diff = typed("versions", "diff", "topic", "1", "2")
    assert diff["l2"] > 0 and diff["tensors"][0]["relative"] is None
    shown = typed("versions", "diff", "topic", "1", "2", people=True)
    assert "moved by" in shown and "head.weight" in shown
    shown = typed("versions", "diff", "topic", "1", "2", "--tensors", "1", people=True)
    assert "2 more tensors differ" in shown
    again = typed("versions", "diff", "topic", "2", "1", "--other-vplm", "other", people=True)
    assert "the same bytes" in again

    assert typed("versions", "delete", "topic", "2")["delete_time"]
    assert [v["name"].rpartition("/")[2] for v in _versions(typed, "--deleted")] == ["2"]
    assert [v["name"].rpartition("/")[2] for v in _versions(typed)] == ["1"]
    assert "until" not in typed("versions", "list", "topic", people=True)
    assert "until" in typed("versions", "list", "topic", "--deleted", people=True)
    assert "is back" in typed("versions", "undelete", "topic", "2", people=True)
    assert len(_versions(typed)) == 2

    assert typed("vplms", "delete", "topic") == {"deleted": "topic"}
    assert [v["name"] for v in typed("list")["vplms"]] == ["tenants/acme/vplms/other"]
    for list_command in (("list",), ("vplms", "list")):
        gone = typed(*list_command, "--deleted")["vplms"]
        assert [v["name"] for v in gone] == ["tenants/acme/vplms/topic"]
        assert gone[0]["delete_time"] and gone[0]["purge_time"]
    shown = typed("vplms", "list", "--deleted", people=True)
    assert "topic" in shown and "other" not in shown
    assert typed("vplms", "undelete", "topic")["aliases"] == {"serving": 1}
    assert typed("vplms", "list", "--deleted") == {"vplms": []}
    assert _versions(typed, "--deleted") == []
    assert typed("delete", "topic", "--for-good") == {"deleted": "topic"}
    typed("vplms", "undelete", "topic", code=4)


def _versions(typed: Typed, *options: str) -> list[Any]:
    found: list[Any] = typed("versions", "list", "topic", *options)["versions"]
    return found
