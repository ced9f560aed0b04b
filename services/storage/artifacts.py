"""Artifacts: the operator's local encoders and tables, for processors and trainers.

Files go first, each by its digest, so that what two artifacts share is stored once and a push that
broke off goes on where it was; then the record, created once, which is the commit point. What no
record names is removed by `maintenance.collect`, not at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace

from services.storage import keys
from services.storage.blobs import Declared, checked, verified
from services.storage.deletable import deleted_by, list_live, live
from services.storage.documents import Documents, Stored
from services.storage.listing import info_of
from services.storage.records import ArtifactRecord, Deletion, derived_uid, now
from smile.artifacts import Artifact, ArtifactFile
from smile.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from smile.names import ArtifactName
from smile.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """An artifact to create; `artifact.name` is that of `name`."""

    name: ArtifactName
    artifact: Artifact
    request_id: str

    @property
    def uid(self) -> str:
        """The uid that this request, and its repetitions, give to what they make."""
        return derived_uid("artifact", str(self.name), self.request_id)


class Artifacts:
    """The catalogue in the object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._documents = Documents(store)

    async def put_file(self, declared: Declared, chunks: AsyncIterator[bytes]) -> None:
        """Store a file's bytes, unless they are there; then none need follow.

        Raises:
            InvalidArgument: the bytes are not what was declared.
        """
        if not await self._stored(declared):
            place = keys.artifact_blob(declared.digest)
            await self._store.put_stream(place, checked(chunks, declared))

    async def create(self, new: NewArtifact) -> Artifact:
        """Create an artifact of files that are stored. It never changes.

        Raises:
            AlreadyExists: the name is taken by another request.
            InvalidArgument: two files have one name.
            FailedPrecondition: a file is not stored (FILE_NOT_STORED).
        """
        if (earlier := await self._made_earlier(new)) is not None:
            return earlier
        names = [file.name for file in new.artifact.files]
        if len(set(names)) < len(names):
            raise InvalidArgument(f"an artifact's files have different names, got {names}")
        await self._check_files(new.artifact)
        made = await self._publish(new)
        await self._check_files(new.artifact)  # a collection may have been under way
        return made

    async def get(self, name: ArtifactName) -> Artifact:
        """Raises `NotFound`."""
        return (await self._live(name)).document.view(str(name))

    async def list_page(self, size: int, token: str) -> tuple[list[Artifact], str]:
        """A page of artifacts by id, and the token of the next."""
        found, following = await list_live(self._store, keys.ARTIFACTS, ArtifactRecord, size, token)
        return [record.view(str(ArtifactName(each))) for each, record in found], following

    async def open(self, name: ArtifactName, file: str) -> AsyncIterator[bytes]:
        """A file's bytes, which raise `DataCorrupted` unless they match its digest. `NotFound`."""
        record = (await self._live(name)).document
        found = next((each for each in record.files if each.name == file), None)
        if found is None:
            raise NotFound(
                f"{name} has no file '{file}'",
                metadata={"resource": str(name), "file": file},
            )
        stream = self._store.get_stream(keys.artifact_blob(found.digest))
        return verified(stream, Declared(found.size_bytes, found.digest), f"{name}: {file}")

    async def delete(self, name: ArtifactName, request_id: str) -> None:
        """Raises `NotFound`, also where another request deleted it."""

        def apply(stored: Stored[ArtifactRecord] | None) -> ArtifactRecord | None:
            if stored is not None and deleted_by(stored.document, request_id):
                return None
            record = live(stored, name).document
            deletion = Deletion(request_id=request_id, time=now())
            return record.model_copy(update={"deleted": deletion, "files": (), "note": ""})

        await self._documents.edit(keys.artifact(name), ArtifactRecord, apply)

    async def _made_earlier(self, new: NewArtifact) -> Artifact | None:
        """What this request made before. Raises `AlreadyExists` where the name is not free."""
        stored = await self._documents.read(keys.artifact(new.name), ArtifactRecord)
        if stored is None:
            return None
        record = stored.document
        if record.deleted is None and record.request_id == new.request_id:
            await self._check_files(record.view(str(new.name)))
            return record.view(str(new.name))
        if record.deleted is not None and record.uid != new.uid:
            return None
        taken = record.taken_by(new.uid, str(new.name))
        assert taken is not None, "its name is another request's, or it deleted it itself"
        raise taken

    async def _publish(self, new: NewArtifact) -> Artifact:
        place = keys.artifact(new.name)
        stored = await self._documents.read(place, ArtifactRecord)
        predecessor = stored.document.deleted if stored else None
        if stored is None or predecessor is not None:
            record = _record(new, predecessor)
            with suppress(Aborted):  # somebody was faster: perhaps this request, sent twice
                await self._documents.swap(place, record, stored.etag if stored else None)
                return record.view(str(new.name))
        made = await self._made_earlier(new)
        if made is None:
            raise Aborted(f"{new.name} was changed by someone else meanwhile; try again")
        return made

    async def _check_files(self, artifact: Artifact) -> None:
        """Raises `FailedPrecondition` naming a file that is not stored."""
        there = await asyncio.gather(*(self._stored(_declared(file)) for file in artifact.files))
        for file, stored in zip(artifact.files, there, strict=True):
            if not stored:
                raise FailedPrecondition(
                    f"file '{file.name}' with digest {file.digest} is not stored: put it first",
                    reason="FILE_NOT_STORED",
                    metadata={"file": file.name},
                )

    async def _stored(self, declared: Declared) -> bool:
        info = await info_of(self._store, keys.artifact_blob(declared.digest))
        return info is not None and info.size == declared.size_bytes

    async def _live(self, name: ArtifactName) -> Stored[ArtifactRecord]:
        return live(await self._documents.read(keys.artifact(name), ArtifactRecord), name)


def _declared(file: ArtifactFile) -> Declared:
    return Declared(file.size_bytes, file.digest)


def _record(new: NewArtifact, predecessor: Deletion | None) -> ArtifactRecord:
    made = replace(new.artifact, create_time=now())
    return ArtifactRecord(
        uid=new.uid,
        request_id=new.request_id,
        predecessor=predecessor,
        artifact=replace(made, files=()),
        files=made.files,
    )
