"""Public adapters: the operator's catalogue of modules that every tenant may begin with.

Bytes go first, among the shared blobs; then the record, which is the commit point. A deleted
adapter names its bytes no more; versions that are the adapter as it was still do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from services.storage import keys
from services.storage.blobs import ByteBudget, Declared, received, verified
from services.storage.catalog import Catalog, check_backbone, check_module
from services.storage.deletable import deleted_by, list_live, live
from services.storage.documents import Documents, Stored
from services.storage.records import AdapterRecord, Deletion, derived_uid, now
from services.storage.versions import Versions
from smile.errors import Aborted, AlreadyExists, FailedPrecondition
from smile.model.specs import ModuleSpec
from smile.names import AdapterName, VersionName
from smile.resources import Backbone, PublicAdapter
from smile.store.objects import ObjectStore

OFFERED_ALIAS = "public"


@dataclass(frozen=True, slots=True)
class AdapterTexts:
    """What is said of an adapter."""

    display_name: str = ""
    description: str = ""
    license: str = ""
    source: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewAdapter:
    """An adapter to store. `spec` must be placed on `backbone`."""

    name: AdapterName
    spec: ModuleSpec
    backbone: Backbone
    declared: Declared
    request_id: str
    texts: AdapterTexts


class Adapters:
    """The catalogue in the object store."""

    def __init__(
        self, store: ObjectStore, catalog: Catalog, versions: Versions, budget: ByteBudget
    ) -> None:
        self._store = store
        self._documents = Documents(store)
        self._catalog = catalog
        self._versions = versions
        self._budget = budget

    async def commit(self, new: NewAdapter, chunks: AsyncIterator[bytes]) -> PublicAdapter:
        """Store an adapter, all or nothing.

        Raises:
            AlreadyExists: the name is taken by another request.
            InvalidArgument: the bytes are not what was declared, or not the spec's tensors.
        """
        if (earlier := await self._made_earlier(new.name, new.request_id)) is not None:
            return earlier
        check_backbone(new.spec, new.backbone)
        with self._budget.held(new.declared.size_bytes):
            data = await received(chunks, new.declared)
            await check_module(data, new.spec, new.backbone)
            await self._store.put_if_absent(keys.shared_blob(new.declared.digest), data)
        return await self._publish(new)

    async def publish(
        self, name: AdapterName, version: VersionName, texts: AdapterTexts, request_id: str
    ) -> PublicAdapter:
        """Store a version as an adapter; its metrics are added to what is said of it.

        Raises:
            AlreadyExists: the name is taken by another request.
            NotFound: there is no such version.
            FailedPrecondition: its tenant does not offer it.
        """
        if (earlier := await self._made_earlier(name, request_id)) is not None:
            return earlier
        found, stream = await self._versions.open(version)
        record = (await self._catalog.record(version.vplm)).document
        if record.aliases.get(OFFERED_ALIAS) != version.number:
            raise FailedPrecondition(
                f"{version} is not offered: its tenant offers a version by pointing the alias "
                f"'{OFFERED_ALIAS}' to it",
                reason="VERSION_NOT_OFFERED",
                metadata={"resource": str(version)},
            )
        new = NewAdapter(
            name,
            found.spec,
            record.backbone,
            Declared(found.size_bytes, found.digest),
            request_id,
            replace(texts, metrics={**found.metrics, **texts.metrics}),
        )
        return await self.commit(new, stream)

    async def get(self, name: AdapterName) -> tuple[PublicAdapter, Backbone]:
        """An adapter, and the backbone it is made for. Raises `NotFound`."""
        record = (await self._live(name)).document
        return record.view(str(name)), record.backbone

    async def list_page(self, size: int, token: str) -> tuple[list[PublicAdapter], str]:
        """A page of adapters by id, and the token of the next."""
        found, following = await list_live(self._store, keys.ADAPTERS, AdapterRecord, size, token)
        return [record.view(str(AdapterName(each))) for each, record in found], following

    async def open(self, name: AdapterName) -> AsyncIterator[bytes]:
        """An adapter's bytes, which raise `DataCorrupted` unless they match its digest."""
        record = (await self._live(name)).document
        stream = self._store.get_stream(keys.shared_blob(record.digest))
        return verified(stream, Declared(record.size_bytes, record.digest), str(name))

    async def delete(self, name: AdapterName, request_id: str) -> None:
        """Offer an adapter no more. Raises `NotFound`, also where another request did so."""

        def apply(stored: Stored[AdapterRecord] | None) -> AdapterRecord | None:
            if stored is not None and deleted_by(stored.document, request_id):
                return None
            record = live(stored, name).document
            deletion = Deletion(request_id=request_id, time=now())
            cleared = {
                "digest": "",
                "display_name": "",
                "description": "",
                "source": "",
                "tags": {},
            }
            return record.model_copy(update={"deleted": deletion, **cleared})

        await self._documents.edit(keys.adapter(name), AdapterRecord, apply)

    async def _made_earlier(self, name: AdapterName, request_id: str) -> PublicAdapter | None:
        stored = await self._documents.read(keys.adapter(name), AdapterRecord)
        if stored is None:
            return None
        record = stored.document
        if record.deleted is None and record.request_id == request_id:
            return record.view(str(name))
        if (taken := record.taken_by(_uid(name, request_id), str(name))) is not None:
            raise taken
        return None

    async def _publish(self, new: NewAdapter) -> PublicAdapter:
        place = keys.adapter(new.name)
        stored = await self._documents.read(place, AdapterRecord)
        predecessor = stored.document.deleted if stored else None
        if stored is None or predecessor is not None:
            record = _record(new, predecessor)
            with suppress(Aborted):  # somebody was faster: perhaps this request, sent twice
                await self._documents.swap(place, record, stored.etag if stored else None)
                return record.view(str(new.name))
        made = await self._made_earlier(new.name, new.request_id)
        if made is None:
            raise AlreadyExists(f"{new.name} exists already", metadata={"resource": str(new.name)})
        return made

    async def _live(self, name: AdapterName) -> Stored[AdapterRecord]:
        return live(await self._documents.read(keys.adapter(name), AdapterRecord), name)


def _uid(name: AdapterName, request_id: str) -> str:
    return derived_uid("adapter", str(name), request_id)


def _record(new: NewAdapter, predecessor: Deletion | None) -> AdapterRecord:
    texts = new.texts
    return AdapterRecord(
        uid=_uid(new.name, new.request_id),
        request_id=new.request_id,
        predecessor=predecessor,
        spec=new.spec,
        backbone=new.backbone,
        digest=new.declared.digest,
        size_bytes=new.declared.size_bytes,
        create_time=now(),
        display_name=texts.display_name,
        description=texts.description,
        license=texts.license,
        source=texts.source,
        tags=dict(texts.tags),
        metrics=dict(texts.metrics),
    )
