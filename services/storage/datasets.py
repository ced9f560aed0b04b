"""Datasets: rows as bytes, whose format nobody here interprets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from services.storage import keys
from services.storage.blobs import Declared, checked, verified
from services.storage.deletable import deleted_by, live
from services.storage.documents import Documents, Stored, load_page, stored_bytes
from services.storage.identity import Identity
from services.storage.quota import Ledger
from services.storage.records import DatasetRecord, Deletion, derived_uid, now
from smile import pages
from smile.errors import Aborted, AlreadyExists, QuotaExceeded, SmileError
from smile.limits import DATASET_BYTES_MAX, TENANT_DATASETS_MAX
from smile.logs import get_logger
from smile.names import DatasetName, TenantId
from smile.resources import Dataset, DatasetFormat
from smile.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class NewDataset:
    """A dataset to store."""

    name: DatasetName
    format: DatasetFormat
    declared: Declared
    request_id: str
    display_name: str = ""

    @property
    def uid(self) -> str:
        """The uid that this request, and its repetitions, give to what they make."""
        return derived_uid("dataset", str(self.name), self.request_id)


class Datasets:
    """Dataset records and bytes. `size_bytes_max` bounds one dataset."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        ledger: Ledger,
        size_bytes_max: int = DATASET_BYTES_MAX,
    ) -> None:
        self._store = store
        self._documents = Documents(store)
        self._identity = identity
        self._ledger = ledger
        self._size_bytes_max = size_bytes_max

    async def upload(self, new: NewDataset, chunks: AsyncIterator[bytes]) -> Dataset:
        """Store a dataset, all or nothing.

        Raises:
            AlreadyExists: the name is taken by another request.
            InvalidArgument: the bytes are not what was declared.
            QuotaExceeded: too large, or the tenant has no room.
        """
        self._check_size(new.declared.size_bytes)
        tenant = await self._identity.tenant(new.name.tenant)
        if (earlier := await self._made_earlier(new)) is not None:
            return earlier
        await self._check_count(new.name.tenant)
        size = new.declared.size_bytes + stored_bytes(_record(new, None))
        async with self._ledger.reserved(new.name.tenant, size, tenant.quota_bytes):
            place = keys.dataset_bytes(new.name, new.uid)
            await self._store.put_stream(place, checked(chunks, new.declared))
            return await self._publish(new)

    async def get(self, name: DatasetName) -> Dataset:
        """Raises `NotFound`."""
        return (await self._record(name)).document.view(str(name))

    async def list_page(self, tenant: TenantId, size: int, token: str) -> tuple[list[Dataset], str]:
        """A page of datasets by id, and the token of the next."""
        listing = f"datasets of {tenant}"
        after = pages.place_of(token, listing)
        names = [n for n in await self._store.list_folders(keys.datasets(tenant)) if n > after]
        found, more = await load_page(names, self._loader(tenant), size)
        following = pages.token_for(listing, found[-1][0]) if more else ""
        return [dataset for _, dataset in found], following

    async def open(self, name: DatasetName) -> tuple[Dataset, AsyncIterator[bytes]]:
        """A dataset and its bytes, which raise `DataCorrupted` unless they match its digest."""
        record = (await self._record(name)).document
        stream = self._store.get_stream(keys.dataset_bytes(name, record.uid))
        declared = Declared(record.size_bytes, record.digest)
        return record.view(str(name)), verified(stream, declared, str(name))

    async def delete(self, name: DatasetName, request_id: str) -> None:
        """Delete a dataset. Raises `NotFound` where there is none that this request could."""

        def apply(stored: Stored[DatasetRecord] | None) -> DatasetRecord | None:
            if stored is not None and deleted_by(stored.document, request_id):
                return None
            record = live(stored, name).document
            deletion = Deletion(request_id=request_id, time=now())
            return record.model_copy(update={"deleted": deletion, "display_name": ""})

        stored = await self._documents.edit(keys.dataset(name), DatasetRecord, apply)
        if stored.document.deleted is not None:
            await self._remove(keys.dataset_bytes(name, stored.document.uid))
        self._ledger.forget(name.tenant)

    async def _made_earlier(self, new: NewDataset) -> Dataset | None:
        """What this request made before. Raises `AlreadyExists` where the name is not free."""
        stored = await self._documents.read(keys.dataset(new.name), DatasetRecord)
        if stored is None:
            return None
        record = stored.document
        if record.deleted is None and record.request_id == new.request_id:
            return record.view(str(new.name))
        if (taken := record.taken_by(new.uid, str(new.name))) is not None:
            raise taken
        return None

    async def _publish(self, new: NewDataset) -> Dataset:
        """Write the record: the commit point."""
        place = keys.dataset(new.name)
        stored = await self._documents.read(place, DatasetRecord)
        predecessor = stored.document.deleted if stored else None
        record = _record(new, predecessor)
        if stored is None or predecessor is not None:
            with suppress(Aborted):
                await self._documents.swap(place, record, stored.etag if stored else None)
                return record.view(str(new.name))
        try:
            made = await self._made_earlier(new)
        except AlreadyExists:
            await self._remove(keys.dataset_bytes(new.name, new.uid))
            raise
        if made is None:
            raise Aborted(f"{new.name} was changed by someone else meanwhile; try again")
        return made

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._size_bytes_max:
            raise QuotaExceeded(
                f"a dataset has at most {self._size_bytes_max} bytes, {size_bytes} were declared",
                metadata={
                    "limit_name": "dataset_bytes_max",
                    "limit": str(self._size_bytes_max),
                    "value": str(size_bytes),
                },
            )

    async def _check_count(self, tenant: TenantId) -> None:
        names = await self._store.list_folders(keys.datasets(tenant))
        if len(names) < TENANT_DATASETS_MAX:
            return
        live, _ = await load_page(names, self._loader(tenant), len(names), bytes_max=None)
        if len(live) >= TENANT_DATASETS_MAX:
            raise QuotaExceeded(
                f"a tenant has at most {TENANT_DATASETS_MAX} datasets, and has {len(live)}",
                metadata={"limit": str(TENANT_DATASETS_MAX), "value": str(len(live))},
            )

    async def _record(self, name: DatasetName) -> Stored[DatasetRecord]:
        return live(await self._documents.read(keys.dataset(name), DatasetRecord), name)

    def _loader(self, tenant: TenantId) -> Callable[[str], asyncio.Future[Dataset | None]]:
        async def load(dataset: str) -> Dataset | None:
            name = DatasetName(tenant, dataset)
            stored = await self._documents.read(keys.dataset(name), DatasetRecord)
            if stored is None or stored.document.deleted is not None:
                return None
            return stored.document.view(str(name))

        return lambda dataset: asyncio.ensure_future(load(dataset))

    async def _remove(self, key: str) -> None:
        """Best effort: nothing points at `key` any more, and what stays is swept later."""
        try:
            await self._store.delete(key)
        except SmileError as error:
            get_logger().warning("left bytes for the sweeper", key=key, why=error.message)


def _record(new: NewDataset, predecessor: Deletion | None) -> DatasetRecord:
    return DatasetRecord(
        uid=new.uid,
        request_id=new.request_id,
        predecessor=predecessor,
        format=new.format,
        digest=new.declared.digest,
        size_bytes=new.declared.size_bytes,
        create_time=now(),
        display_name=new.display_name,
    )
