"""Storage → host memory: one module's bytes, capped, checked against its digest, and made ready to
serve.

Who calls `load` makes sure that it is called once per module at a time (`Residency.begin`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.processor.requests import Target
from smile.errors import DataCorrupted
from smile.limits import MODULE_BYTES_MAX
from smile.model.specs import ModuleSpec
from smile.names import VersionName

Module_co = TypeVar("Module_co", covariant=True)
Module = TypeVar("Module")


class Bytes(Protocol):
    """Where modules come from."""

    def download(self, name: VersionName) -> AsyncGenerator[bytes, None]: ...


class Loading(Protocol[Module_co]):
    """What turns checked bytes into a module."""

    def load_module(self, spec: ModuleSpec, data: bytes) -> Module_co: ...


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Module]):
    """A module in serving form and the memory it takes."""

    module: Module
    nbytes: int


class Loader(Generic[Module]):
    """Loads modules, a few at a time.

    Args:
        source: Storage.
        engine: Decodes bytes and knows the backbones.
        pool: Threads for decoding.
        loads_max: Loads at a time; each holds at most one module's bytes beside the module itself.
    """

    def __init__(
        self,
        source: Bytes,
        engine: Loading[Loaded[Module]],
        pool: Executor,
        *,
        loads_max: int,
    ) -> None:
        self._source = source
        self._engine = engine
        self._pool = pool
        self._slots = asyncio.Semaphore(loads_max)

    async def load(self, target: Target) -> Loaded[Module]:
        """The module of a version.

        Raises:
            DataCorrupted: the bytes are not those of the manifest's digest, or not a module of its
                spec.
            FailedPrecondition: the module was made for another backbone.
            NotFound, Unavailable: storage does not have them, or is away.
        """
        async with self._slots:
            data = await self._fetch(target)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._pool, self._engine.load_module, target.spec, data
            )

    async def _fetch(self, target: Target) -> bytes:
        version = target.version
        limit = min(version.size_bytes, MODULE_BYTES_MAX)
        data = bytearray()
        sha256 = hashlib.sha256()
        async with aclosing(self._source.download(target.name)) as chunks:
            async for chunk in chunks:
                data += chunk
                sha256.update(chunk)
                if len(data) > limit:
                    raise DataCorrupted(
                        f"{target.name} has more bytes than {limit}, which its manifest and the "
                        f"limit of {MODULE_BYTES_MAX} allow"
                    )
        if sha256.hexdigest() != version.digest:
            raise DataCorrupted(
                f"{target.name}: {len(data)} bytes arrived with SHA-256 {sha256.hexdigest()}, the "
                f"manifest says {version.size_bytes} bytes with {version.digest}"
            )
        return bytes(data)
