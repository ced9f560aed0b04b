"""Bytes in pieces: measuring, sending, and saving all or nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smile.client.chunks import MeasuredFile, pieces, save
from smile.errors import DataCorrupted, InvalidArgument
from smile.limits import CHUNK_BYTES_MAX


@given(st.binary(max_size=100), st.integers(1, 20))
def test_pieces_are_the_whole_in_order_and_never_empty(data: bytes, size: int) -> None:
    found = list(pieces(data, size))
    assert b"".join(found) == data
    assert all(0 < len(piece) <= size for piece in found)


@pytest.mark.asyncio
async def test_a_file_is_measured_and_sent_whole(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK_BYTES_MAX + 5)
    path = tmp_path / "data"
    path.write_bytes(data)
    file = await MeasuredFile.measure(path)
    assert (file.size_bytes, file.digest) == (len(data), hashlib.sha256(data).hexdigest())
    heard: list[tuple[int, int]] = []
    chunks = [chunk async for chunk in file.chunks(lambda *told: heard.append(told))]
    assert b"".join(chunks) == data
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, 5]
    assert heard[-1] == (len(data), len(data))


async def _of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.asyncio
async def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    digest = hashlib.sha256(b"abc").hexdigest()
    await save(_of(b"a", b"bc"), path, digest=digest)
    assert path.read_bytes() == b"abc"
    with pytest.raises(DataCorrupted, match="2 bytes arrived"):
        await save(_of(b"a", b"b"), path, digest=digest)
    assert path.read_bytes() == b"abc"
    with pytest.raises(InvalidArgument, match="cannot write"):
        await save(_of(b"abc"), tmp_path / "no" / "out", digest=digest)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]  # noqa: ASYNC240
