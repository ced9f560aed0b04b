"""Texts that cannot be answered, and vPLMs that cannot answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio

import smile
from smile.model import layout, weights
from smile.model.initial import initial_tensors
from smile.model.sources import describe
from smile.model.specs import DType, ModuleSpec
from smile.v1 import processor_pb2
from tests.contract.every_rpc import put_version
from tests.contract.harmless import Scene, scene, told

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INFER = "ProcessorService.Infer"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Scene]:
    async with scene() as made:
        yield made


def infer(texts: list[str], **asked: object) -> processor_pb2.InferRequest:
    return processor_pb2.InferRequest(
        name="tenants/acme/vplms/topic",
        texts=texts,
        **asked,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("texts", "reason", "facts"),
    [
        ([], "TEXTS_MISSING", ("10000", "0")),
        (["fine", ""], "TEXT_EMPTY", ("text 1", "0 characters")),
        (["fine", " \n\t\u00a0"], "TEXT_EMPTY", ("text 1", "4 characters")),
        (["a"] * 10_001, "TOO_MANY_TEXTS", ("10000", "10001")),
        (["a", "b" * 100_001], "TEXT_TOO_LONG", ("text 1", "100000", "100001", "characters")),
        (["a", "red " * 400], "TEXT_TOO_LONG", ("text 1", "128", "402", "tokens")),
    ],
    ids=["none", "empty", "blank", "10001", "characters", "tokens"],
)
async def test_texts_that_are_refused(
    place: Scene, texts: list[str], reason: str, facts: tuple[str, ...]
) -> None:
    async with place.harmless():
        outcome = await place.call(INFER, infer(texts))
        assert (outcome.code, outcome.reason) == (INVALID, reason)
        assert outcome.error is not None
        told(outcome.error, *facts)
        with pytest.raises(type(outcome.error)) as caught:
            await place.client.infer("topic", texts)
        assert (caught.value.reason, type(caught.value)) == (reason, type(outcome.error))


async def test_a_long_text_is_cut_only_when_asked_and_that_is_told(place: Scene) -> None:
    texts = ["red " * 400, "short"]
    with pytest.raises(smile.TextTooLong):
        await place.client.infer("topic", texts)
    result = await place.client.infer("topic", texts, truncate=True)
    assert [p.truncated for p in result.predictions] == [True, False]
    assert result.predictions[0].token_count == 128
    with pytest.raises(smile.TextTooLong, match="100000"):
        await place.client.infer("topic", ["x" * 100_001], truncate=True)


async def test_texts_of_wrong_types_and_lone_surrogates(place: Scene) -> None:
    async with place.harmless():
        for wrong in (1, None, b"bytes", ["nested"]):
            with pytest.raises(smile.InvalidArgument, match=r"texts\[1\] must be a str"):
                await place.client.infer("topic", ["fine", wrong])  # type: ignore[list-item]
        with pytest.raises(smile.InvalidArgument) as caught:
            await place.client.infer("topic", "\ud800")
        assert caught.value.reason == "TEXT_NOT_UTF8"


async def test_strange_texts_are_answered(place: Scene) -> None:
    """Ugly is not wrong."""
    texts = ["\x00", "\u202e\u200b", "🙂" * 50, "a\x00b", "İ" * 20, "\ufffd", "=cmd|' /C calc'!A0"]
    result = await place.client.infer("topic", texts)
    assert len(result.predictions) == len(texts)


@pytest.mark.parametrize("top_k", [-1, 1001, 2**31 - 1])
async def test_top_k_out_of_range(place: Scene, top_k: int) -> None:
    outcome = await place.call(INFER, infer(["a"], top_k=top_k))
    assert (outcome.code, outcome.reason) == (INVALID, "REQUEST_INVALID")
    assert "top_k" in outcome.message and "1000" in outcome.message


async def test_what_is_not_there(place: Scene) -> None:
    async with place.harmless():
        for name in ("absent", "tenants/rival/vplms/topic", "tenants/rival/vplms/absent"):
            with pytest.raises(smile.NotFound, match=name):
                await place.client.infer(name, "a")
        with pytest.raises(smile.NotFound) as caught:
            await place.client.infer("topic", "a", version=99)
        told(caught.value, "topic/versions/99")
        with pytest.raises(smile.NotFound) as caught:
            await place.client.infer("topic", "a", alias="nothing")
        assert caught.value.reason == "ALIAS_NOT_FOUND"
        with pytest.raises(smile.InvalidArgument, match="version or an alias"):
            await place.client.infer("topic", "a", version=1, alias="serving")


async def test_a_deadline_too_short(place: Scene) -> None:
    async with place.harmless():
        with pytest.raises(smile.DeadlineExceeded):
            await place.client.infer("topic", ["a good day"] * 5000, timeout=0.01)
        assert place.platform.processor is not None
    async with asyncio.timeout(5):
        while place.platform.processor.pipeline.stats().queue_texts:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spec_of(place: Scene) -> ModuleSpec:
    info = describe(place.platform.backbone)
    pet = smile.Pfeiffer(rank=4).placed(info.shape)
    head = smile.HeadSpec(smile.Task.SEQUENCE_CLASSIFICATION, ("good", "bad"))
    return ModuleSpec("toy", info.digest, pet, head)


async def refused_weights(place: Scene, data: bytes) -> smile.SmileError:
    async with place.harmless():
        outcome = await place.call(
            "StorageService.PutVersion", put_version(place.acme.vplm(), data)
        )
    assert outcome.code is INVALID and outcome.error is not None, outcome
    return outcome.error


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_weights_that_are_no_numbers(place: Scene, value: float) -> None:
    spec = spec_of(place)
    tensors = initial_tensors(spec, describe(place.platform.backbone).shape, 0)
    tensors["head.weight"][1, 3] = value
    good = weights.encode({**tensors, "head.weight": np.zeros_like(tensors["head.weight"])}, spec)
    raw = tensors["head.weight"].astype("<f2").tobytes()
    data = good.replace(b"\0" * len(raw), raw, 1)
    error = await refused_weights(place, data)
    assert error.reason == "MODULE_INVALID"
    told(error, "head.weight" if b"head.weight" in good else "", "1 numbers", "not finite")


async def test_weights_of_another_shape_rank_or_precision(place: Scene) -> None:
    spec, shape = spec_of(place), describe(place.platform.backbone).shape
    other_rank = replace(spec, pet=replace(spec.pet, rank=5))
    other_head = replace(spec, head=replace(spec.head, labels=("a", "b", "c")))
    other_precision = replace(spec, dtype=DType.FLOAT32)
    for other in (other_rank, other_head, other_precision):
        data = weights.encode(initial_tensors(other, shape, 0), other)
        error = await refused_weights(place, data)
        assert error.reason == "MODULE_INVALID"
    assert layout.bytes_total(spec, shape) < len(place.weights)


async def test_weights_with_flipped_bytes_in_their_header(place: Scene) -> None:
    length = int.from_bytes(place.weights[:8], "little")
    async with place.harmless(changes=("/acme/vplms/topic",)):
        for at in range(0, 8 + length, 37):
            data = bytearray(place.weights)
            data[at] ^= 0x5A
            messages = put_version(place.acme.vplm(), bytes(data))
            outcome = await place.call("StorageService.PutVersion", messages)
            assert (outcome.code, outcome.reason) == (INVALID, "MODULE_INVALID"), at


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95pickle",
        b"PK\x03\x04" + b"\0" * 100,
        b"\xff" * 8 + b"{}",
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        b"\0" * 8,
        b"x",
        (5000).to_bytes(8, "little") + b"[" * 5000,
    ],
    ids=[
        "pickle",
        "zip",
        "huge header",
        "2^62",
        "no tensors",
        "empty header",
        "one byte",
        "nested",
    ],
)
async def test_files_that_are_no_weights(place: Scene, data: bytes) -> None:
    error = await refused_weights(place, data)
    assert error.reason == "MODULE_INVALID"
    assert "nothing was stored" in error.message


async def test_weights_that_rot_on_the_disk(place: Scene, tmp_path: Path) -> None:
    """Of one version: its other versions, other vPLMs and other tenants go on."""
    client, store = place.client, place.platform.store
    await client.create_vplm(
        "rotten", backbone="toy", pet=smile.BitFit(), labels=["good", "bad"], seed=123
    )
    digest = (await client.version("rotten")).digest
    (blob,) = (key for key in await store.snapshot() if digest in key and "/acme/" in key)
    stored = await store.inner.get(blob)
    assert stored is not None
    for data in (stored.data[:-1] + b"\1", stored.data[:-5], stored.data + b"\0", b""):
        await store.overwrite(blob, data)
        async with place.harmless():
            with pytest.raises(smile.DataCorrupted) as caught:
                await client.infer("rotten", "a")
            told(caught.value, "rotten/versions/1")
            target = tmp_path / "rotten.safetensors"
            target.write_bytes(b"what was there")
            with pytest.raises(smile.DataCorrupted):
                await client.download_version("rotten", target)
            assert contents(tmp_path) == {"rotten.safetensors": b"what was there"}
            assert (await client.infer("topic", "a")).predictions
        await asyncio.sleep(0.25)  # the failure is remembered so long
    await store.inner.delete(blob)
    with pytest.raises(smile.DataCorrupted) as caught:
        await client.infer("rotten", "a")
    assert caught.value.reason == "BLOB_MISSING"
    await store.inner.put_if_absent(blob, stored.data)
    await asyncio.sleep(0.25)
    assert (await client.infer("rotten", "a")).digest == digest


async def test_records_that_rot_on_the_disk(place: Scene) -> None:
    client, store = place.client, place.platform.store
    await client.create_vplm("torn", backbone="toy", pet=smile.BitFit(), labels=["a", "b"])
    key = "tenants/acme/vplms/torn/vplm.json"
    stored = await store.inner.get(key)
    assert stored is not None
    for data in (b"", b"{", stored.data[:-1], b'{"schema":1}', b"\xff\xfe", b"[]"):
        await store.overwrite(key, data)
        async with place.harmless():
            with pytest.raises(smile.DataCorrupted) as caught:
                await client.vplm("torn")
            assert caught.value.reason == "RECORD_CORRUPTED"
            told(caught.value, "tenants/acme/vplms/torn")
            with pytest.raises(smile.DataCorrupted):
                await client.infer("torn", "a")
            assert "tenants/acme/vplms/topic" in [vplm.name async for vplm in client.vplms()]
    await store.overwrite(key, stored.data)
    assert (await client.infer("torn", "a")).predictions


async def test_where_a_download_cannot_be_written(place: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for target in ("file/below", "absent/below", "folder"):
        with pytest.raises(smile.InvalidArgument) as caught:
            await place.client.download_version("topic", tmp_path / target)
        assert caught.value.reason == "FILE_UNWRITABLE"
        told(caught.value, tmp_path / target)
    assert contents(tmp_path) == {"file": b"x"}
