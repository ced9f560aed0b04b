"""An object store in a directory of this machine, safe between processes and across power loss.

A key is a path below the root. Bytes are written to a temporary file, flushed to the disk and
renamed into place, then the directory entry is flushed, too, and those of new directories.
Operations that depend on what a key holds now take an exclusive `flock` on one of 64 lock files,
chosen by the key.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from smile.errors import Aborted, FailedPrecondition, NotFound, Unavailable
from smile.limits import CHUNK_BYTES_MAX
from smile.store.objects import (
    LIST_KEYS_MAX,
    Object,
    ObjectInfo,
    Reading,
    check_key,
    check_prefix,
    probe_store,
)

LOCKS = 64
LOCK_WAIT_S_MAX = 10.0
LOCK_POLL_S = 0.002
PLACE_ATTEMPTS_MAX = 8
TEMPORARY_AGE_S_MAX = 86_400.0
FOLDERS_REMEMBERED_MAX = 10_000
FLUSHES_MAX = 8
_PRIVATE = ".smile"
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)
_FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


class DirectoryStore:
    """`ObjectStore` below `root`, which is made when first written to."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / _PRIVATE / "tmp"
        self._locks = root / _PRIVATE / "locks"
        self._swept = False
        self._durable: set[Path] = set()  # folders whose entry in the one above has been flushed
        self._flushers = ThreadPoolExecutor(FLUSHES_MAX, thread_name_prefix="flush")

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self._path(key)

        def put() -> bool:
            with self._locked(key):
                if path.exists():
                    return False
                self._write(path, data)
                return True

        return await self._run(put)

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        path = self._path(key)

        def swap() -> str:
            with self._locked(key):
                found = _read(path)
                if (found.etag if found else None) != etag:
                    raise Aborted(f"{key} was changed by someone else")
                self._write(path, data)
                return Object(data).etag

        return await self._run(swap)

    async def get(self, key: str) -> Object | None:
        path = self._path(key)
        return await self._run(lambda: _read(path))

    async def read(self, reading: Reading[T]) -> T:
        def run() -> T:
            try:
                key = next(reading)
                while True:
                    key = reading.send(_read(self._path(key)))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

        return await self._run(run)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        path = self._path(key)
        temporary, file = await self._run(self._open_temporary)
        try:
            async for chunk in chunks:
                await self._run(lambda data=chunk: file.write(data))  # type: ignore[misc]
            await self._run(lambda: self._finish(key, path, temporary, file))
        except BaseException:
            with suppress(OSError):  # what it still holds does not fit on a full disk
                file.close()
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    async def get_stream(
        self, key: str, chunk_bytes: int = CHUNK_BYTES_MAX
    ) -> AsyncIterator[bytes]:
        path = self._path(key)
        file = await self._run(lambda: _opened(path))
        if file is None:
            raise NotFound(f"object {key} does not exist")
        try:
            while chunk := await self._run(lambda: file.read(chunk_bytes)):
                yield chunk
        finally:
            file.close()

    async def list_objects(
        self, prefix: str, *, after: str | None = None, limit: int = LIST_KEYS_MAX
    ) -> list[ObjectInfo]:
        folder = self._root / check_prefix(prefix)

        def walk() -> list[ObjectInfo]:
            found: list[ObjectInfo] = []
            for info in _walk(folder, prefix, after or ""):
                if len(found) == limit:
                    break
                found.append(info)
            return found

        return await self._run(walk)

    async def list_folders(self, prefix: str) -> list[str]:
        folder = self._root / check_prefix(prefix)

        def scan() -> list[str]:
            return sorted(e.name for name, e in _entries(folder) if name.endswith("/"))

        return await self._run(scan)

    async def delete(self, key: str) -> None:
        path = self._path(key)

        def remove() -> None:
            with self._locked(key):
                path.unlink(missing_ok=True)
            for parent in path.relative_to(self._root).parents:
                if parent == Path("."):
                    return
                try:
                    self._durable.discard(self._root / parent)
                    (self._root / parent).rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    return  # not empty

        await self._run(remove)

    @property
    def name(self) -> str:
        return f"directory {self._root}"

    @property
    def shared(self) -> bool:
        return True

    @property
    def durable(self) -> bool:
        return True

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        path = self._path(key)

        def read() -> bytes | None:
            file = _opened(path)
            if file is None:
                return None
            with file:
                return os.pread(file.fileno(), length, start)

        if (data := await self._run(read)) is None:
            raise NotFound(f"object {key} does not exist")
        return data

    async def versioned(self) -> bool:
        return False

    async def prepare(self) -> None:
        """Nothing: the directory is made when first written to."""

    async def probe(self) -> None:
        if not self._swept:
            await self._run(self._sweep_temporary)
            self._swept = True
        await probe_store(self)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    async def _run(self, act: Callable[[], T]) -> T:
        return await asyncio.to_thread(self._guarded, act)

    def _guarded(self, act: Callable[[], T]) -> T:
        """`act()`, with the operating system's refusals as errors of ours."""
        try:
            return act()
        except OSError as error:
            raise self._fault(error) from error

    def _fault(self, error: OSError) -> FailedPrecondition | Unavailable:
        where = error.filename or self._root
        if error.errno in _FORBIDDEN:
            return FailedPrecondition(
                f"storage may not use {where} ({error.strerror}); give it a directory that it can "
                "write to",
                reason="STORE_ACCESS_DENIED",
            )
        full = error.errno in _FULL
        return Unavailable(
            f"the storage directory is {'full' if full else 'failing'}: {error.strerror}",
            reason="STORE_FULL" if full else "STORE_UNAVAILABLE",
            retry_after=30.0 if full else 1.0,
        )

    def _open_temporary(self) -> tuple[Path, BinaryIO]:
        self._temporary.mkdir(parents=True, exist_ok=True)
        path = self._temporary / uuid.uuid4().hex
        return path, path.open("xb")

    def _write(self, path: Path, data: bytes) -> None:
        with suppress(FileNotFoundError):  # now, so that the file's flush may take it along
            self._make_folder(path.parent)
        temporary, file = self._open_temporary()
        try:
            with file:
                file.write(data)
                _flush(file)
            self._place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _finish(self, key: str, path: Path, temporary: Path, file: BinaryIO) -> None:
        with file:
            _flush(file)
        with self._locked(key):
            self._place(temporary, path)

    def _place(self, temporary: Path, path: Path) -> None:
        """Rename into place, durably; again where a concurrent delete prunes the folder."""
        for attempt in range(1, PLACE_ATTEMPTS_MAX + 1):
            try:
                self._make_folder(path.parent)
                os.replace(temporary, path)
            except FileNotFoundError:
                if attempt == PLACE_ATTEMPTS_MAX:
                    raise Unavailable(f"{path.parent} keeps vanishing", retry_after=1.0) from None
            else:
                self._flush_folders(path.parent)
                return

    def _make_folder(self, folder: Path) -> None:
        """Make what is missing, which is durable once it was flushed with what is put there."""
        missing = []
        while not folder.is_dir() and folder != folder.parent:
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            self._durable.discard(made)
            with suppress(FileExistsError):
                made.mkdir()

    def _flush_folders(self, folder: Path) -> None:
        """Make the entries of a folder durable, and the folder, and those it is in: whoever made
        them may not have come to that yet.
        """
        fresh = []
        while folder not in self._durable and folder.is_relative_to(self._root):
            fresh.append(folder)
            folder = folder.parent
        for _ in self._flushers.map(_flush_folder, fresh):  # at once: a disk flushes for all
            pass
        _flush_folder(folder)
        if len(self._durable) > FOLDERS_REMEMBERED_MAX:
            self._durable.clear()
        self._durable.update(fresh)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        self._locks.mkdir(parents=True, exist_ok=True)
        number = zlib.crc32(key.encode()) % LOCKS
        with (self._locks / f"{number:02d}").open("ab") as file:
            _take(file)
            yield  # closing the file gives the lock back

    def _sweep_temporary(self) -> None:
        """Remove what crashed writers left behind."""
        if not self._temporary.is_dir():
            return
        oldest = time.time() - TEMPORARY_AGE_S_MAX
        for entry in self._temporary.iterdir():
            with suppress(FileNotFoundError):
                if entry.stat().st_mtime < oldest:
                    entry.unlink()


def _take(file: BinaryIO) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S_MAX
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"a lock of the storage directory was not free for {LOCK_WAIT_S_MAX:g} s",
                    reason="STORE_BUSY",
                    retry_after=1.0,
                ) from None
            time.sleep(LOCK_POLL_S)


def _read(path: Path) -> Object | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return Object(data)


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return  # pruned meanwhile; the rename that follows finds out
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """Entries in byte order of the keys they lead to: a folder sorts as its name and '/'."""
    try:
        with os.scandir(folder) as entries:
            named = [(f"{e.name}/" if e.is_dir() else e.name, e) for e in entries]
    except FileNotFoundError:
        return []
    return sorted((item for item in named if item[0][0] != "."), key=lambda item: item[0])


def _walk(folder: Path, prefix: str, after: str) -> Iterator[ObjectInfo]:
    for name, entry in _entries(folder):
        key = prefix + name
        if name.endswith("/"):
            if key > after or after.startswith(key):
                yield from _walk(folder / entry.name, key, after)
        elif key > after:
            with suppress(FileNotFoundError):
                stat = entry.stat()
                yield ObjectInfo(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))
