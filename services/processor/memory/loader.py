"""Storage → host memory: one module's bytes, capped, checked against its digest, decoded, and put
in their place. What local disk has kept of it comes from there, ready to be put.

Who calls `load` makes sure that it is called once per module at a time (`Residency.begin`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from services.processor.lanes.dispatch import TierLevel
from services.processor.memory.space import Slot
from services.processor.memory.spill import LostError
from services.processor.memory.tiers import TierCounters
from services.processor.requests import ModuleKey, Target
from smile.errors import DataCorrupted
from smile.limits import MODULE_BYTES_MAX
from smile.logs import get_logger
from smile.model.kernels.rows import Row
from smile.model.specs import ModuleSpec
from smile.names import VersionName

Module_co = TypeVar("Module_co", covariant=True)
Module = TypeVar("Module")

RowsOf: TypeAlias = Callable[[Sequence[Slot]], Sequence[Row]]


class Bytes(Protocol):
    """Where modules come from."""

    def download(self, name: VersionName, digest: str) -> AsyncGenerator[bytes, None]: ...


class Decoded(Protocol[Module_co]):
    """A module that has no place yet, and may still be bytes that were checked."""

    @property
    def row_bytes(self) -> Sequence[int]:
        """The sizes of the rows it needs."""
        ...

    def place(self, rows: Sequence[Row]) -> Module_co:
        """Copy it into rows of these sizes. Raises what decoding raises."""
        ...


class Decoding(Protocol[Module_co]):
    """What turns checked bytes into a module."""

    def decode(self, spec: ModuleSpec, data: bytes) -> Decoded[Module_co]: ...

    def row_bytes(self, spec: ModuleSpec) -> Sequence[int] | None:
        """The sizes of the rows of such a module, if they are known without its bytes. Does not
        block.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Undecoded(Generic[Module]):
    """Checked bytes of a module whose size is known: decoded when it has its place, by the same
    thread, so that loading waits for threads once and not twice."""

    engine: Decoding[Module]
    spec: ModuleSpec
    data: bytes
    row_bytes: Sequence[int]

    def place(self, rows: Sequence[Row]) -> Module:
        """Decode it, and copy it."""
        return self.engine.decode(self.spec, self.data).place(rows)


class Kept(Protocol[Module]):
    """Modules on local disk, for any thread."""

    def find(self, key: ModuleKey) -> Decoded[Module] | None:
        """A module that can be read to its place, which may raise `LostError`. Does not block."""
        ...

    def keep(self, key: ModuleKey, module: Module) -> None:
        """Write it down if that will help. Blocks."""
        ...

    def level(self) -> TierLevel: ...


class Nothing:
    """No local disk."""

    def find(self, key: ModuleKey) -> None:
        """It is not there."""

    def keep(self, key: ModuleKey, module: object) -> None:
        """It is not kept."""

    def level(self) -> TierLevel:
        """Empty."""
        return TierLevel(0, 0, 0, TierCounters())


class Loader(Generic[Module]):
    """Loads modules, a few at a time.

    Args:
        source: Storage.
        engine: Decodes bytes and knows the backbones.
        pool: Threads for decoding and copying.
        rows_of: The memory in slots.
        loads_max: Loads at a time. Each holds at most one module's bytes and the decoded module,
            until that has its place: what waits for room is bounded by this, too.
        kept: Local disk, asked before storage.
    """

    def __init__(
        self,
        source: Bytes,
        engine: Decoding[Module],
        pool: Executor,
        *,
        rows_of: RowsOf,
        loads_max: int,
        kept: Kept[Module] | None = None,
    ) -> None:
        self._source = source
        self._engine = engine
        self._pool = pool
        self._rows_of = rows_of
        self._kept: Kept[Module] = Nothing() if kept is None else kept
        self._turns = asyncio.Semaphore(loads_max)

    def disk_level(self) -> TierLevel:
        """How full local disk is."""
        return self._kept.level()

    @asynccontextmanager
    async def load(self, target: Target) -> AsyncIterator[Decoded[Module]]:
        """The module of a version, to be placed inside the context, which may raise the same.

        Raises:
            DataCorrupted: the bytes are not those of the manifest's digest, or not a module of its
                spec.
            FailedPrecondition: the module was made for another backbone.
            NotFound, Aborted: storage does not have the version any more; look it up again.
            Unavailable: storage is away.
        """
        async with self._turns:
            yield self._kept.find(target.key) or await self._decoded(target)

    async def place(
        self, target: Target, decoded: Decoded[Module], slots: Sequence[Slot]
    ) -> Module:
        """The module, copied into its slots; inside the context of `load`, and raises the same."""
        try:
            return await self._placed(target.key, decoded, slots)
        except LostError as error:
            get_logger().info("loaded from storage instead", why=str(error))
            return await self._placed(target.key, await self._decoded(target), slots)

    async def _decoded(self, target: Target) -> Decoded[Module]:
        """The module from storage."""
        data = await self._fetch(target)
        if (row_bytes := self._engine.row_bytes(target.spec)) is not None:
            return _Undecoded(self._engine, target.spec, data, row_bytes)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._engine.decode, target.spec, data)

    async def _placed(
        self, key: ModuleKey, decoded: Decoded[Module], slots: Sequence[Slot]
    ) -> Module:
        def place() -> Module:
            module = decoded.place(self._rows_of(slots))
            self._kept.keep(key, module)
            return module

        return await asyncio.get_running_loop().run_in_executor(self._pool, place)

    async def _fetch(self, target: Target) -> bytes:
        version = target.version
        limit = min(version.size_bytes, MODULE_BYTES_MAX)
        parts, size, sha256 = list[bytes](), 0, hashlib.sha256()
        async with aclosing(self._source.download(target.name, version.digest)) as chunks:
            async for chunk in chunks:
                parts.append(chunk)
                size += len(chunk)
                sha256.update(chunk)
                if size > limit:
                    raise DataCorrupted(
                        f"{target.name} has more bytes than {limit}, which its manifest and the "
                        f"limit of {MODULE_BYTES_MAX} allow"
                    )
        if sha256.hexdigest() != version.digest:
            raise DataCorrupted(
                f"{target.name}: {size} bytes arrived with SHA-256 {sha256.hexdigest()}, the "
                f"manifest says {version.size_bytes} bytes with {version.digest}"
            )
        return b"".join(parts)  # no copy of one alone
