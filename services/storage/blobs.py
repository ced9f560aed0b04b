"""Bytes on their way in and out: counted, hashed, and never more than was declared."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from smile.errors import DataCorrupted, InvalidArgument, NotFound, Overloaded


@dataclass(frozen=True, slots=True)
class Declared:
    """What the sender said the bytes are. `digest` is their SHA-256 in hex."""

    size_bytes: int
    digest: str


class ByteBudget:
    """Bounds the bytes of uploads that are held in memory at a time."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = 0

    @contextmanager
    def held(self, size_bytes: int) -> Iterator[None]:
        """Hold `size_bytes` inside. Raises `Overloaded` where that is too much now."""
        if self._held + size_bytes > self._bytes_max:
            raise Overloaded(
                f"uploads in progress may hold {self._bytes_max} bytes, {self._held} are held and "
                f"this one needs {size_bytes}",
                reason="TOO_MANY_UPLOADS",
                retry_after=1.0,
            )
        self._held += size_bytes
        try:
            yield
        finally:
            self._held -= size_bytes


async def checked(chunks: AsyncIterator[bytes], declared: Declared) -> AsyncIterator[bytes]:
    """An upload's chunks. Raises `InvalidArgument` as soon as they are not what was declared."""
    digest = hashlib.sha256()
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > declared.size_bytes:
            raise _wrong("STREAM_TOO_LONG", f"{declared.size_bytes} bytes were declared, got more")
        digest.update(chunk)
        yield chunk
    if size < declared.size_bytes:
        raise _wrong(
            "STREAM_TRUNCATED", f"{declared.size_bytes} bytes were declared, got only {size}"
        )
    if digest.hexdigest() != declared.digest:
        raise _wrong(
            "DIGEST_MISMATCH",
            f"SHA-256 {declared.digest} was declared, the bytes have {digest.hexdigest()}",
        )


async def received(chunks: AsyncIterator[bytes], declared: Declared) -> bytes:
    """A whole upload in memory, as declared. Raises `InvalidArgument`."""
    data = bytearray()
    async for chunk in checked(chunks, declared):
        data += chunk
    return bytes(data)


async def verified(
    chunks: AsyncIterator[bytes], declared: Declared, what: str
) -> AsyncIterator[bytes]:
    """Stored bytes on their way out; the last chunk is held back until all are known to be right.

    Raises:
        DataCorrupted: the bytes are gone, or not those that were stored.
    """
    digest = hashlib.sha256()
    size = 0
    held: bytes | None = None
    try:
        async for chunk in chunks:
            if held is not None:
                yield held
            digest.update(chunk)
            size += len(chunk)
            if size > declared.size_bytes:
                break
            held = chunk
    except NotFound as error:
        raise _corrupted(what, "BLOB_MISSING", "are missing") from error
    if size != declared.size_bytes or digest.hexdigest() != declared.digest:
        raise _corrupted(what, "DIGEST_MISMATCH", "do not match their digest")
    if held is not None:
        yield held


def _wrong(reason: str, message: str) -> InvalidArgument:
    return InvalidArgument(message + "; nothing was stored", reason=reason)


def _corrupted(what: str, reason: str, how: str) -> DataCorrupted:
    return DataCorrupted(
        f"the stored bytes of {what} {how}", reason=reason, metadata={"resource": what}
    )
