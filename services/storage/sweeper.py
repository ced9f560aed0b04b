"""Removes what broken-off requests left: old bytes below a uid that no record names."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from services.storage import keys
from services.storage.documents import Documents
from services.storage.quota import every_object
from services.storage.records import DatasetRecord, Deletable, VplmRecord, now
from smile.errors import SmileError
from smile.logs import get_logger
from smile.names import DatasetName, TenantId, VplmName
from smile.store.objects import ObjectStore

AGE_MIN = timedelta(hours=1)  # far longer than any upload may take to commit


class Sweeper:
    """Walks all tenants. Safe beside running requests: what is young stays."""

    def __init__(self, store: ObjectStore, age_min: timedelta = AGE_MIN) -> None:
        self._store = store
        self._documents = Documents(store)
        self._age_min = age_min

    async def run(self, every_s: float) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                removed = await self.sweep()
            except SmileError as error:
                get_logger().warning("could not sweep", why=error.message)
            else:
                get_logger().info("swept", objects=removed)

    async def sweep(self) -> int:
        """Sweep once; the objects removed."""
        removed = 0
        for name in await self._store.list_folders(keys.TENANT_DATA):
            tenant = TenantId(name)
            for vplm in await self._store.list_folders(keys.vplms(tenant)):
                place = VplmName(tenant, vplm)
                removed += await self._below(keys.vplm_folder(place), keys.vplm(place), VplmRecord)
            for dataset in await self._store.list_folders(keys.datasets(tenant)):
                where = DatasetName(tenant, dataset)
                removed += await self._below(
                    keys.dataset_folder(where), keys.dataset(where), DatasetRecord
                )
        return removed

    async def _below(self, folder: str, record_key: str, kind: type[Deletable]) -> int:
        removed = 0
        for uid in await self._store.list_folders(folder):
            old = [
                info.key
                async for info in every_object(self._store, f"{folder}{uid}/")
                if now() - info.modified > self._age_min
            ]
            if old and not await self._named(record_key, kind, uid):
                for key in old:
                    await self._store.delete(key)
                removed += len(old)
        return removed

    async def _named(self, record_key: str, kind: type[Deletable], uid: str) -> bool:
        """Whether the record (read after its contents were found old) names `uid`."""
        try:
            stored = await self._documents.read(record_key, kind)
        except SmileError:
            return True  # unreadable: touch nothing
        return stored is not None and stored.document.deleted is None and stored.document.uid == uid
