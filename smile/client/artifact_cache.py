"""Artifacts of storage's catalogue in a folder of this machine, for services that work with them.

Each lies in a folder of its id, complete and checked or not at all; processes share them. What is
there serves while storage is away. A name that was given to something else meanwhile is fetched
anew, and takes the place of what was there; whoever has that open keeps it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import grpc

from smile.artifacts import Artifact, ArtifactFile
from smile.client.artifact_files import make_folder_of
from smile.client.chunks import save
from smile.codec.artifacts import artifact_from_pb
from smile.errors import SmileError
from smile.logs import get_logger
from smile.names import ArtifactName
from smile.rpc.status import calling
from smile.v1 import artifacts_pb2, artifacts_pb2_grpc

ASK_TIMEOUT_S = 5.0
FILE_TIMEOUT_S = 3_600.0
RETRY_S_FIRST, RETRY_S_MAX = 1.0, 30.0
LOOK_S = 60.0  # how often a name is asked for again
STAMP = ".digest"


class ArtifactCache:
    """Fetches artifacts by name.

    Args:
        channel: To storage, with the service key.
        folder: Where they lie, and stay.
    """

    def __init__(self, channel: grpc.aio.Channel, folder: Path) -> None:
        self._stub = artifacts_pb2_grpc.ArtifactServiceStub(channel)
        self._folder = folder

    async def fetch(self, name: ArtifactName) -> bool:
        """Whether there is something new in the artifact's folder now.

        Raises:
            SmileError: storage does not have it, or is away, or its bytes are not those that were
                stored; what is in the folder stays.
            OSError: the folder cannot be written.
        """
        with calling():
            request = artifacts_pb2.GetArtifactRequest(name=str(name))
            found = artifact_from_pb(await self._stub.GetArtifact(request, timeout=ASK_TIMEOUT_S))
        place = self._folder / name.artifact
        if await asyncio.to_thread(_stamp, place) == found.digest:
            return False
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name.artifact}.", dir=self._folder))
        try:
            for file in found.files:
                await asyncio.to_thread(make_folder_of, fresh / file.name)
                await save(self._chunks(found, file), fresh / file.name, digest=file.digest)
            await asyncio.to_thread(_take_place, fresh, place, found.digest)
        finally:
            await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
        get_logger().info("artifact fetched", artifact=str(name), size_bytes=found.size_bytes)
        return True

    async def keep(
        self,
        names: Sequence[ArtifactName],
        on_state: Callable[[ArtifactName, str], object] = lambda name, why: None,
    ) -> None:
        """Fetches artifacts, and newer ones of their names, until cancelled.

        Args:
            on_state: Hears after every look of a name why it cannot be had; empty where it is
                there.
        """
        if names:
            await asyncio.gather(*(self._keep_one(name, on_state) for name in names))

    async def _keep_one(
        self, name: ArtifactName, on_state: Callable[[ArtifactName, str], object]
    ) -> None:
        wait_s, said = RETRY_S_FIRST, ""
        while True:
            try:
                await self.fetch(name)
                why = ""
            except (SmileError, OSError) as error:
                why = error.message if isinstance(error, SmileError) else str(error)
                if why != said:
                    get_logger().warning("an artifact cannot be fetched", name=str(name), why=why)
            said = why
            on_state(name, why)
            await asyncio.sleep(wait_s if why else LOOK_S)
            wait_s = min(2 * wait_s, RETRY_S_MAX) if why else RETRY_S_FIRST

    async def _chunks(self, artifact: Artifact, file: ArtifactFile) -> AsyncIterator[bytes]:
        request = artifacts_pb2.ReadArtifactFileRequest(name=artifact.name, file=file.name)
        with calling():
            async for part in self._stub.ReadArtifactFile(request, timeout=FILE_TIMEOUT_S):
                yield part.chunk


def _stamp(place: Path) -> str:
    """The digest of what lies there; empty: nothing."""
    try:
        return (place / STAMP).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _take_place(fresh: Path, place: Path, digest: str) -> None:
    (fresh / STAMP).write_text(digest, encoding="ascii")
    fresh.chmod(0o755)
    if place.exists():
        before = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        with suppress(OSError):  # another process was faster
            place.rename(before / "gone")
        shutil.rmtree(before, ignore_errors=True)
    try:
        fresh.rename(place)
    except OSError:
        if _stamp(place) != digest:  # else another process has fetched the same
            raise
