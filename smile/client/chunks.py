"""Bytes in pieces: what client-streamed uploads and server-streamed downloads are made of."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from smile.errors import DataCorrupted, InvalidArgument
from smile.limits import CHUNK_BYTES_MAX

T = TypeVar("T")
OnBytes = Callable[[int, int], None]  # (bytes so far, bytes in all)


def pieces(data: bytes, size: int = CHUNK_BYTES_MAX) -> Iterator[bytes]:
    """`data` in order, in pieces of at most `size` bytes, none of them empty."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """A file with its size in bytes and its SHA-256 (hex), as they were when it was measured."""

    path: Path
    size_bytes: int
    digest: str

    @classmethod
    async def measure(cls, path: Path) -> MeasuredFile:
        """Read the file once, in a thread.

        Raises:
            InvalidArgument: it is not a file, cannot be read or is empty.
        """
        return await asyncio.to_thread(cls._measure, path)

    @classmethod
    def _measure(cls, path: Path) -> MeasuredFile:
        sha256 = hashlib.sha256()
        size = 0
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES_MAX):
                    sha256.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise unreadable(path, error) from error
        if size == 0:
            raise InvalidArgument(f"{path} is empty: 0 bytes", reason="FILE_EMPTY")
        return cls(path, size, sha256.hexdigest())

    async def chunks(self, on_bytes: OnBytes | None = None) -> AsyncIterator[bytes]:
        """The file's bytes in pieces, read in a thread; `on_bytes` hears of each one sent."""
        sent = 0
        file = await self._reading(lambda: self.path.open("rb"))
        try:
            while chunk := await self._reading(lambda: file.read(CHUNK_BYTES_MAX)):
                yield chunk
                sent += len(chunk)
                if on_bytes is not None:
                    on_bytes(sent, self.size_bytes)
        finally:
            file.close()

    async def _reading(self, read: Callable[[], T]) -> T:
        """What `read` gives, in a thread. Raises `InvalidArgument` where it cannot."""
        try:
            return await asyncio.to_thread(read)
        except OSError as error:
            raise unreadable(self.path, error) from error


class Sending(Generic[T]):
    """The messages of an upload. Where making one fails, gRPC cancels the call without a word: then
    what is awaited inside `telling` raises why."""

    def __init__(self, messages: AsyncIterator[T]) -> None:
        self._messages = messages
        self._failure: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[T]:
        try:
            async for message in self._messages:
                yield message
        except Exception as error:
            self._failure = error
            raise

    @contextmanager
    def telling(self) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            raise self._failure from None


async def save(
    chunks: AsyncIterator[bytes], path: Path, *, digest: str, on_bytes: OnBytes | None = None
) -> None:
    """Write `chunks` to `path`, which appears only when complete and of the SHA-256 `digest`.

    Raises:
        DataCorrupted: the bytes have another digest.
        InvalidArgument: the path cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    sha256 = hashlib.sha256()
    received = 0
    try:
        with await asyncio.to_thread(part.open, "wb") as file:
            async for chunk in chunks:
                sha256.update(chunk)
                await asyncio.to_thread(file.write, chunk)
                received += len(chunk)
                if on_bytes is not None:
                    on_bytes(received, 0)
        if sha256.hexdigest() != digest:
            raise DataCorrupted(
                f"{received} bytes arrived with SHA-256 {sha256.hexdigest()}, expected {digest}"
            )
        await asyncio.to_thread(part.replace, path)
    except OSError as error:
        raise InvalidArgument(
            f"cannot write {path}: {error.strerror or type(error).__name__}",
            reason="FILE_UNWRITABLE",
        ) from error
    finally:
        with suppress(OSError):  # what kept it from being written keeps it from being removed
            part.unlink(missing_ok=True)


def unreadable(path: Path, error: OSError) -> InvalidArgument:
    """What to raise for a file that cannot be read."""
    return InvalidArgument(
        f"cannot read {path}: {error.strerror or type(error).__name__}", reason="FILE_UNREADABLE"
    )
