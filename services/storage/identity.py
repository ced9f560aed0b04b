"""Tenants and their API keys. Secrets are shown once and kept as SHA-256."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from services.storage import keys
from services.storage.changes import Announcer, Unannounced
from services.storage.documents import Documents, Stored, load_page
from services.storage.quota import every_object
from services.storage.records import KeyRecord, TenantRecord, now
from smile import pages
from smile.accounting import DEFAULT_LIMITS, NO_LIMIT, Limit, Limits
from smile.errors import AlreadyExists, InvalidArgument, NotFound, QuotaExceeded
from smile.limits import TENANT_API_KEYS_MAX
from smile.names import ApiKeyName, TenantId
from smile.resources import ApiKey, Tenant
from smile.store.objects import ObjectStore

QUOTA_BYTES_MAX = NO_LIMIT


@dataclass(frozen=True, slots=True)
class KeySecret:
    """A new key's parts: its id, and the hash of the secret its holder gets."""

    key_id: str
    secret_sha256: str


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A tenant to make. `quota_bytes` 0 means the default."""

    tenant: TenantId
    display_name: str
    quota_bytes: int
    request_id: str


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key, and whether this call made it: an earlier one has shown its secret already."""

    api_key: ApiKey
    new: bool


def key_id_for(tenant: TenantId, request_id: str) -> str:
    """The id of the key that a request makes, so that repeating it makes no second one."""
    digest = hashlib.sha256(f"key\n{tenant}\n{request_id}".encode()).digest()
    return "k" + base64.b32encode(digest).decode().lower()[:15]


class Identity:
    """Tenants and keys in the object store."""

    def __init__(
        self,
        store: ObjectStore,
        announcer: Announcer | None = None,
        defaults: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._store = store
        self._defaults = defaults  # of who is given none
        self._quota_bytes = defaults[Limit.STORED_BYTES]
        self._announcer = announcer or Unannounced()
        self._documents = Documents(store)

    async def tenant(self, tenant: TenantId) -> Tenant:
        """Raises `NotFound`."""
        return (await self._tenant(tenant)).document.view(tenant)

    def limits_of(self, tenant: Tenant) -> Limits:
        """All limits of a tenant: its own, else the defaults."""
        return {**self._defaults, **tenant.limits, Limit.STORED_BYTES: tenant.quota_bytes}

    async def create_tenant(self, new: NewTenant, secret: KeySecret) -> tuple[Tenant, MadeKey]:
        """Make a tenant with its first key, whose id must be a fresh one: its record is written
        first, so that a tenant that exists has a key.

        Raises:
            AlreadyExists: another request made a tenant of this id.
        """
        if not 0 <= new.quota_bytes <= QUOTA_BYTES_MAX:
            raise InvalidArgument(
                f"quota_bytes must be between 0 and {QUOTA_BYTES_MAX}, got {new.quota_bytes}"
            )
        place = keys.tenant(new.tenant)
        name = ApiKeyName(new.tenant, secret.key_id)
        if await self._documents.read(place, TenantRecord) is None:
            key = self._key_record(secret, "first key", new.request_id)
            await self._documents.create(keys.api_key(name), key)
            record = TenantRecord(
                display_name=new.display_name,
                create_time=now(),
                quota_bytes=new.quota_bytes or self._quota_bytes,
                request_id=new.request_id,
                first_key_id=secret.key_id,
            )
            if await self._documents.create(place, record):
                return record.view(new.tenant), MadeKey(key.view(str(name)), new=True)
            await self._documents.delete(keys.api_key(name))
        return await self._made_earlier(new)

    async def _made_earlier(self, new: NewTenant) -> tuple[Tenant, MadeKey]:
        stored = (await self._tenant(new.tenant)).document
        if stored.request_id != new.request_id:
            raise AlreadyExists(f"tenants/{new.tenant} exists already")
        first = ApiKeyName(new.tenant, stored.first_key_id)
        return stored.view(new.tenant), MadeKey(await self.api_key(first), new=False)

    async def set_limits(self, tenant: TenantId, wanted: Mapping[Limit, int | None]) -> Tenant:
        """Set limits of a tenant, those named alone; None goes back to the default.

        Raises:
            NotFound: no such tenant.
        """

        def change(stored: Stored[TenantRecord] | None) -> TenantRecord | None:
            if stored is None:
                raise _absent(f"tenants/{tenant}")
            record = stored.document
            limits = {**record.limits, **wanted}
            quota = wanted.get(Limit.STORED_BYTES, record.quota_bytes)
            changed = record.model_copy(
                update={
                    "quota_bytes": self._quota_bytes if quota is None else quota,
                    "limits": {
                        limit: value
                        for limit, value in limits.items()
                        if value is not None and limit is not Limit.STORED_BYTES
                    },
                }
            )
            return None if changed == record else changed

        stored = await self._documents.edit(keys.tenant(tenant), TenantRecord, change)
        return stored.document.view(tenant)

    async def tenant_ids(self) -> list[TenantId]:
        """Of all tenants, sorted."""
        return sorted(
            [
                TenantId(info.key.removeprefix(keys.TENANTS).removesuffix(".json"))
                async for info in every_object(self._store, keys.TENANTS)
            ]
        )

    async def list_tenants(self, size: int, token: str) -> tuple[list[Tenant], str]:
        """A page of tenants by id, and the token of the next."""
        after = pages.place_of(token, "tenants")
        wanted = [name for name in await self.tenant_ids() if name > after]

        async def load(name: str) -> Tenant | None:
            tenant = TenantId(name)
            stored = await self._documents.read(keys.tenant(tenant), TenantRecord)
            return stored.document.view(tenant) if stored else None

        found, more = await load_page(wanted, load, size)
        following = pages.token_for("tenants", found[-1][0]) if more else ""
        return [tenant for _, tenant in found], following

    async def api_key(self, name: ApiKeyName) -> ApiKey:
        """Raises `NotFound`."""
        stored = await self._documents.read(keys.api_key(name), KeyRecord)
        if stored is None:
            raise _absent(name)
        return stored.document.view(str(name))

    async def create_api_key(
        self, tenant: TenantId, display_name: str, secret: KeySecret, request_id: str
    ) -> MadeKey:
        """Make one more key.

        Raises:
            NotFound: no such tenant.
            QuotaExceeded: the tenant has as many keys that work as it may.
        """
        await self._tenant(tenant)
        name = ApiKeyName(tenant, secret.key_id)
        earlier = await self._documents.read(keys.api_key(name), KeyRecord)
        if earlier is not None:
            return MadeKey(earlier.document.view(str(name)), new=False)
        working = [key for key in await self._all_keys(tenant) if key.revoke_time is None]
        if len(working) >= TENANT_API_KEYS_MAX:
            raise QuotaExceeded(
                f"a tenant has at most {TENANT_API_KEYS_MAX} keys that work, and has "
                f"{len(working)}; revoke one first",
                metadata={"limit": str(TENANT_API_KEYS_MAX), "value": str(len(working))},
            )
        record = self._key_record(secret, display_name, request_id)
        made = await self._documents.create(keys.api_key(name), record)
        return MadeKey(await self.api_key(name), new=made)

    async def list_api_keys(
        self, tenant: TenantId, size: int, token: str
    ) -> tuple[list[ApiKey], str]:
        """A page of keys by id, revoked ones included, and the token of the next. `NotFound`."""
        await self._tenant(tenant)
        listing = f"apiKeys of {tenant}"
        after = pages.place_of(token, listing)
        wanted = [name for name in await self._key_ids(tenant) if name > after]
        found, more = await load_page(wanted, self._key_loader(tenant), size)
        following = pages.token_for(listing, found[-1][0]) if more else ""
        return [key for _, key in found], following

    async def revoke_api_key(self, name: ApiKeyName) -> None:
        """Make a key useless, at once for those who ask storage. `NotFound`."""

        def revoke(stored: Stored[KeyRecord] | None) -> KeyRecord | None:
            if stored is None:
                raise _absent(name)
            if stored.document.revoke_time is not None:
                return None
            return stored.document.model_copy(update={"revoke_time": now()})

        await self._documents.edit(
            keys.api_key(name), KeyRecord, revoke, partial(self._announcer.changing, str(name))
        )

    async def secret_sha256(self, name: ApiKeyName) -> str | None:
        """The hash that a working key's secret has; None where the key does not work."""
        tenant, key = await asyncio.gather(
            self._documents.read(keys.tenant(name.tenant), TenantRecord),
            self._documents.read(keys.api_key(name), KeyRecord),
        )
        if tenant is None or key is None or key.document.revoke_time is not None:
            return None
        return key.document.secret_sha256

    async def _tenant(self, tenant: TenantId) -> Stored[TenantRecord]:
        stored = await self._documents.read(keys.tenant(tenant), TenantRecord)
        if stored is None:
            raise _absent(f"tenants/{tenant}")
        return stored

    async def _key_ids(self, tenant: TenantId) -> list[str]:
        prefix = keys.api_keys(tenant)
        return [
            info.key.removeprefix(prefix).removesuffix(".json")
            async for info in every_object(self._store, prefix)
        ]

    async def _all_keys(self, tenant: TenantId) -> list[ApiKey]:
        names = await self._key_ids(tenant)
        found, _ = await load_page(names, self._key_loader(tenant), len(names), bytes_max=None)
        return [key for _, key in found]

    def _key_loader(self, tenant: TenantId) -> Callable[[str], asyncio.Future[ApiKey | None]]:
        async def load(key_id: str) -> ApiKey | None:
            name = ApiKeyName(tenant, key_id)
            stored = await self._documents.read(keys.api_key(name), KeyRecord)
            return stored.document.view(str(name)) if stored else None

        return lambda key_id: asyncio.ensure_future(load(key_id))

    @staticmethod
    def _key_record(secret: KeySecret, display_name: str, request_id: str) -> KeyRecord:
        return KeyRecord(
            secret_sha256=secret.secret_sha256,
            display_name=display_name,
            create_time=now(),
            request_id=request_id,
        )


def _absent(name: object) -> NotFound:
    return NotFound(f"{name} does not exist", metadata={"resource": str(name)})
