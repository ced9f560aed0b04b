"""Uploads that are not what they say, too large, or cut off; and specs that make no sense."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from grpc.aio import Metadata

import smile
from smile.client.chunks import MeasuredFile
from smile.rpc.status import from_rpc_error
from smile.v1 import creator_pb2, datasets_pb2, resources_pb2, storage_pb2
from tests.contract.every_rpc import ROWS, create_vplm, put_version, upload
from tests.contract.harmless import Scene, scene, told

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UPLOAD = "DatasetService.UploadDataset"
PUT = "StorageService.PutVersion"
GIB = 1 << 30
OTHER_DIGEST = hashlib.sha256(b"other").hexdigest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Scene]:
    async with scene() as made:
        yield made


def streams(place: Scene) -> dict[str, Any]:
    """How to send bytes, by RPC: data and header fields to messages."""
    return {
        UPLOAD: lambda data, **header: upload(place.acme.parent, data, **header),
        PUT: lambda data, **header: put_version(place.acme.vplm(), data, **header),
    }


@pytest.mark.parametrize("method", [UPLOAD, PUT])
async def test_streams_that_are_not_what_they_declare(place: Scene, method: str) -> None:
    make = streams(place)[method]
    good = ROWS if method == UPLOAD else place.weights
    size = len(good)
    one = make(good)
    chunk = type(one[0])(chunk=b"x")
    cases: dict[str, tuple[list[Message], str, tuple[object, ...]]] = {
        "digest": (make(good, digest=OTHER_DIGEST), "DIGEST_MISMATCH", (OTHER_DIGEST,)),
        "truncated": (make(good, size_bytes=size + 7), "STREAM_TRUNCATED", (size + 7, size)),
        "no bytes": (one[:1], "STREAM_TRUNCATED", (size, 0)),
        "longer": ([*one, chunk], "STREAM_TOO_LONG", (size,)),
        "no header": (one[1:], "HEADER_MISSING", ()),
        "nothing": ([], "HEADER_MISSING", ()),
        "two headers": ([one[0], *one], "HEADER_REPEATED", ()),
        "empty chunk": ([*one, type(chunk)(chunk=b"")], "REQUEST_INVALID", ("chunk",)),
        "large chunk": (
            [one[0], type(chunk)(chunk=b"x" * ((1 << 20) + 1))],
            "REQUEST_INVALID",
            ("1048576",),
        ),
        "negative size": (make(good, size_bytes=-1), "REQUEST_INVALID", ("size_bytes",)),
        "no size": (make(good, size_bytes=0), "REQUEST_INVALID", ("size_bytes",)),
        "no digest": (make(good, digest=""), "REQUEST_INVALID", ("digest",)),
        "digest in capitals": (
            make(good, digest=OTHER_DIGEST.upper()),
            "REQUEST_INVALID",
            ("digest",),
        ),
    }
    for name, (messages, reason, facts) in cases.items():
        async with place.harmless():
            outcome = await place.call(method, messages)
            assert (outcome.code, outcome.reason) == (INVALID, reason), (name, outcome)
            assert outcome.error is not None
            told(outcome.error, *facts)


@pytest.mark.parametrize("method", [UPLOAD, PUT])
async def test_a_sender_that_goes_away(place: Scene, method: str) -> None:
    """By cancelling, by its deadline, or by failing itself: nothing of it stays."""
    messages = streams(place)[method](ROWS if method == UPLOAD else place.weights)

    async def slowly() -> AsyncIterator[Message]:
        for message in messages[:-1]:
            yield message
        await asyncio.sleep(30)

    async def failing() -> AsyncIterator[Message]:
        yield messages[0]
        raise ValueError("the file cannot be read on")

    async with place.harmless():
        outcome = await place.calls.call(method, slowly(), key=place.acme.key, timeout_s=0.2)
        assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED
        call = asyncio.create_task(place.call(method, slowly()))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(asyncio.CancelledError):  # so grpc.aio ends a call whose sender fails
            await place.call(method, failing())
        await asyncio.sleep(0.05)


async def test_two_gibibytes_against_a_quota_are_refused_before_any_byte_is_sent(
    place: Scene,
) -> None:
    pulled = 0

    async def endless(header: Message) -> AsyncIterator[Message]:
        nonlocal pulled
        yield header
        while True:
            pulled += 1
            yield datasets_pb2.UploadDatasetRequest(chunk=b"x" * (1 << 20))
            await asyncio.sleep(0.001)

    for size, limit in ((2 * GIB, GIB), (GIB, GIB), (2**62, GIB)):
        header = upload(place.acme.parent, b"", size_bytes=size, digest=OTHER_DIGEST)[0]
        async with place.harmless():
            outcome = await place.call(UPLOAD, endless(header))
            while outcome.reason == "ANSWER_LOST":  # see smile.rpc.status; the SDK asks again, too
                outcome = await place.call(UPLOAD, endless(header))
        assert (outcome.code, outcome.reason) == (EXHAUSTED, "QUOTA_EXCEEDED")
        assert isinstance(outcome.error, smile.QuotaExceeded)
        told(outcome.error, limit)
        assert int(outcome.error.metadata["value"]) >= size
        assert outcome.error.metadata["limit"] == str(limit)
    assert pulled < 100
    assert (await place.client.usage()).stored_bytes < 1 << 20


async def test_an_upload_refused_while_it_is_sent_tells_why(place: Scene, tmp_path: Path) -> None:
    """Whatever the moment at which the refusal meets the bytes."""
    with (tmp_path / "big.csv").open("wb") as file:
        file.truncate(30 << 20)
    await place.platform.add_tenant("tiny", quota_bytes=1 << 20)
    async with place.platform.client("tiny") as client, place.harmless():
        for _ in range(10):
            with pytest.raises(smile.QuotaExceeded, match=str(1 << 20)):
                await client.upload_dataset("big", tmp_path / "big.csv")
    lost = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, Metadata(), Metadata(), "Internal error from Core"
    )
    assert isinstance(from_rpc_error(lost), smile.Unavailable)


async def test_a_small_quota_is_kept_to_the_byte_and_by_concurrent_uploads(place: Scene) -> None:
    place.platform.keys.pop("small", None)
    await place.platform.add_tenant("small", quota_bytes=60_000)
    async with place.platform.client("small") as client:
        rows = [{"text": "x" * 1000, "label": "a"}] * 25
        sent = await asyncio.gather(
            *(client.upload_dataset(f"d{n}", rows) for n in range(6)), return_exceptions=True
        )
        kept = [one for one in sent if isinstance(one, smile.Dataset)]
        refused = [one for one in sent if isinstance(one, smile.QuotaExceeded)]
        assert (len(kept), len(refused)) == (2, 4)
        told(refused[0], 60_000)
        usage = await client.usage()
        assert usage.dataset_bytes < usage.stored_bytes <= 60_000
        with pytest.raises(smile.QuotaExceeded):
            await client.create_vplm(
                "big", backbone="toy", pet=smile.Houlsby(rank=32, first_layer=0), labels=["a", "b"]
            )
        await client.delete_dataset(kept[0].name)
        assert (await client.upload_dataset("again", rows)).size_bytes == kept[0].size_bytes


async def test_a_module_larger_than_modules_may_be(place: Scene) -> None:
    messages = put_version(place.acme.vplm(), b"x", size_bytes=(64 << 20) + 1)
    async with place.harmless():
        outcome = await place.call(PUT, messages)
    assert (outcome.code, outcome.reason) == (INVALID, "VERSION_TOO_LARGE")
    assert "67108864" in outcome.message


async def test_files_that_cannot_be_sent(place: Scene, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "rows.doc").write_bytes(b"x")
    (tmp_path / "folder.csv").mkdir()
    async with place.harmless():
        for source, reason in (
            ("absent.csv", "FILE_UNREADABLE"),
            ("folder.csv", "FILE_UNREADABLE"),
            ("empty.csv", "FILE_EMPTY"),
            ("rows.doc", "FORMAT_UNKNOWN"),
        ):
            with pytest.raises(smile.InvalidArgument) as caught:
                await place.client.upload_dataset("news", tmp_path / source)
            assert caught.value.reason == reason
            told(caught.value, source)
        for rows, reason in (
            ([], "FILE_EMPTY"),
            ([{"text": object()}], "ROW_MALFORMED"),
            ([{"text": float("nan")}], "ROW_MALFORMED"),
            ([{"text": "fine"}, {"text": "\ud800"}], "ROW_MALFORMED"),
        ):
            with pytest.raises(smile.InvalidArgument) as caught:
                await place.client.upload_dataset("news", rows)
            assert caught.value.reason == reason, rows


async def test_a_file_or_a_callback_that_fails_while_it_is_sent(
    place: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC would make a cancellation of it, which is not what happened."""
    path = tmp_path / "rows.csv"
    path.write_bytes(ROWS * 9000)

    def fails(sent: int, total: int) -> None:
        raise ZeroDivisionError(f"{sent} of {total}")

    def cut(sent: int, total: int) -> None:
        path.write_bytes(ROWS)

    async with place.harmless():
        with pytest.raises(ZeroDivisionError):
            await place.client.upload_dataset("news", path, on_progress=fails)
        with pytest.raises(ZeroDivisionError):
            await place.client.upload_version("topic", path, on_progress=fails)
        with pytest.raises(smile.InvalidArgument) as caught:
            await place.client.upload_dataset("news", path, on_progress=cut)
        assert caught.value.reason == "STREAM_TRUNCATED"
        measure = MeasuredFile.measure

        async def measured_and_gone(path: Path) -> MeasuredFile:
            found = await measure(path)
            path.unlink()  # noqa: ASYNC240
            return found

        monkeypatch.setattr(MeasuredFile, "measure", measured_and_gone)
        with pytest.raises(smile.InvalidArgument) as caught:
            await place.client.upload_dataset("news", path)
        assert caught.value.reason == "FILE_UNREADABLE"


async def test_a_format_nobody_knows(place: Scene) -> None:
    async with place.harmless():
        for number in (0, 4, 99, -1):
            outcome = await place.call(UPLOAD, upload(place.acme.parent, ROWS, format=number))
            assert (outcome.code, outcome.reason) == (INVALID, "REQUEST_INVALID")


async def test_a_name_that_is_taken(place: Scene) -> None:
    async with place.harmless():
        with pytest.raises(smile.AlreadyExists, match="tenants/acme/vplms/topic"):
            await place.client.create_vplm(
                "topic", backbone="toy", pet=smile.BitFit(), labels=["a", "b"]
            )
        with pytest.raises(smile.AlreadyExists, match="tenants/acme/datasets/rows"):
            await place.client.upload_dataset("rows", [{"text": "x", "label": "a"}])


def pet(**fields: Any) -> resources_pb2.PetSpec:
    return resources_pb2.PetSpec(**fields)


def head(**fields: Any) -> resources_pb2.HeadSpec:
    return resources_pb2.HeadSpec(**fields)


SPECS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown pet": ({"pet": pet(kind=99)}, ("pet.kind",)),
    "no pet kind": ({"pet": pet()}, ("pet.kind",)),
    "rank of 1025": ({"pet": pet(kind=2, rank=1025)}, ("pet.rank", "1024")),
    "negative rank": ({"pet": pet(kind=2, rank=-1)}, ("pet.rank",)),
    "rank beyond hidden": ({"pet": pet(kind=2, rank=33)}, ("32", "33")),
    "rank for bitfit": ({"pet": pet(kind=5, rank=3)}, ("rank",)),
    "layer beyond": ({"pet": pet(kind=2, rank=4, first_layer=4)}, ("4",)),
    "negative layer": (
        {"pet": pet(kind=2, rank=4, first_layer=-1)},
        ("first_layer",),
    ),
    "nan alpha": ({"pet": pet(kind=4, alpha=float("nan"))}, ("alpha",)),
    "infinite alpha": ({"pet": pet(kind=4, alpha=float("inf"))}, ("alpha",)),
    "targets twice": ({"pet": pet(kind=4, targets=[1, 1])}, ("targets",)),
    "unknown target": ({"pet": pet(kind=4, targets=[9])}, ("targets",)),
    "targets for bitfit": ({"pet": pet(kind=5, targets=[1])}, ("target",)),
    "density for lora": ({"pet": pet(kind=4, density=0.01)}, ("density",)),
    "density of 6 %": ({"pet": pet(kind=6, density=0.06)}, ("pet.density", "0.05")),
    "negative density": ({"pet": pet(kind=7, density=-0.01)}, ("pet.density",)),
    "nan density": ({"pet": pet(kind=7, density=float("nan"))}, ("density",)),
    "rank for a mask": ({"pet": pet(kind=7, rank=3)}, ("rank",)),
    "unknown task": ({"head": head(task=9)}, ("head.task",)),
    "one label": ({"head": head(task=1, labels=["a"])}, ("2", "1000", "1")),
    "no label": ({"head": head(task=1)}, ("2", "1000", "0")),
    "1,001 labels": (
        {"head": head(task=1, labels=[str(n) for n in range(1001)])},
        ("head.labels", "1000"),
    ),
    "empty label": ({"head": head(task=1, labels=["a", ""])}, ("labels[1]",)),
    "long label": ({"head": head(task=1, labels=["a", "b" * 129])}, ("128",)),
    "label twice": ({"head": head(task=1, labels=["a", "a"])}, ("repeat",)),
    "labels for embedding": (
        {"head": head(task=3, labels=["a", "b"])},
        ("labels",),
    ),
    "unknown precision": ({"precision": 7}, ("precision",)),
    "negative seed": ({"seed": -1}, ("seed",)),
    "seed of 2^32": ({"seed": 2**32}, ("seed", "4294967295")),
    "33 labels": ({"labels": {str(n): "" for n in range(33)}}, ("32",)),
    "long display name": ({"display_name": "x" * 201}, ("200",)),
}


@pytest.mark.parametrize("case", SPECS)
async def test_recipes_that_make_no_vplm(place: Scene, case: str) -> None:
    changes, facts = SPECS[case]
    async with place.harmless():
        outcome = await place.call("CreatorService.CreateVplm", create_vplm(place.acme, **changes))
        assert outcome.code is INVALID, outcome
        assert outcome.reason in ("REQUEST_INVALID", "INVALID_SPEC")
        assert outcome.error is not None
        told(outcome.error, *facts)


async def test_recipes_of_wrong_types_in_the_sdk(place: Scene) -> None:
    async with place.harmless():
        for options in (
            {"labels": [1, 2]},
            {"labels": "ab"},
            {"labels": ["a", None]},
            {"labels": ["a", "\ud800"]},
            {"labels": ["a", "b"], "precision": "float8"},
            {"labels": ["a", "b"], "task": "poetry"},
            {"labels": ["a", "b"], "pooling": "max"},
            {"labels": ["a", "b"], "seed": 2**70},
        ):
            with pytest.raises(smile.InvalidArgument) as caught:
                await place.client.create_vplm(
                    "never",
                    backbone="toy",
                    pet=smile.BitFit(),
                    **options,
                )
            assert len(caught.value.message) < 500, options


@pytest.mark.parametrize("option", ["learning_rates", "truncated", "epoch"])
async def test_options_nobody_knows_are_not_dropped(place: Scene, option: str) -> None:
    """A misspelt option would otherwise be the default, silently."""
    unknown: Any = {option: 1}
    async with place.harmless():
        with pytest.raises(TypeError, match=f"'{option}'; there are"):
            await place.client.create_vplm(
                "never", backbone="toy", pet=smile.BitFit(), labels=["a", "b"], **unknown
            )
        with pytest.raises(TypeError, match=f"'{option}'; there are"):
            await place.client.train("topic", "rows", **unknown)
        with pytest.raises(TypeError, match=f"'{option}'; there are"):
            await place.client.infer("topic", "a", **unknown)


async def test_masks_and_etags(place: Scene) -> None:
    async with place.harmless():
        for paths in ([], ["name"], ["spec"], ["display_name", "aliases"], ["../x"], [""]):
            request = creator_pb2.UpdateVplmRequest(
                vplm=resources_pb2.Vplm(name=place.acme.vplm()),
                update_mask=FieldMask(paths=paths),
                request_id="00000000-0000-4000-8000-000000000000",
            )
            outcome = await place.call("CreatorService.UpdateVplm", request)
            assert (outcome.code, outcome.reason) == (INVALID, "UPDATE_MASK_INVALID"), outcome
        with pytest.raises(smile.Aborted):
            await place.client.update_vplm("topic", display_name="x", etag="stale")
        with pytest.raises(smile.Aborted):
            await place.client.delete_vplm("topic", etag="stale")
        with pytest.raises(smile.Aborted):
            await place.client.set_alias("topic", "serving", 1, etag="stale")
        with pytest.raises(smile.NotFound, match="versions/99"):
            await place.client.set_alias("topic", "serving", 99)


async def test_tenants_may_not_say_that_they_trained(place: Scene) -> None:
    async with place.harmless():
        for origin in (resources_pb2.VERSION_ORIGIN_INITIAL, resources_pb2.VERSION_ORIGIN_TRAINING):
            outcome = await place.call(
                PUT, put_version(place.acme.vplm(), place.weights, origin=origin)
            )
            assert outcome.code is grpc.StatusCode.PERMISSION_DENIED
            assert outcome.reason == "ORIGIN_NOT_ALLOWED"
        spec = storage_pb2.PutVersionHeader().spec
        spec.CopyFrom(
            resources_pb2.ModuleSpec(
                backbone="backbones/toy",
                backbone_digest="0" * 64,
                pet=pet(kind=5, first_layer=0),
                head=head(task=1, labels=["good", "bad"]),
            )
        )
        outcome = await place.call(PUT, put_version(place.acme.vplm(), place.weights, spec=spec))
        assert (outcome.code, outcome.reason) == (INVALID, "SPEC_MISMATCH")
