"""Usage, keys and tenants: what storage answers about the account itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from smile import codec
from smile.accounting import Limit, PlatformUsage, TenantLimits, TenantUsage, UsageDay
from smile.client.calls import (
    PAGE_ROWS,
    READ_TIMEOUT_S,
    WRITE_TIMEOUT_S,
    Calls,
    asking,
    every,
    new_request_id,
)
from smile.names import check_id
from smile.resources import ApiKey, Tenant, Usage, VplmUsage
from smile.v1 import accounting_pb2, identity_pb2, storage_pb2


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key just made. `key` is the credential itself, shown this once."""

    api_key: ApiKey
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A tenant just made, with its first key. `key` is the credential itself, shown this once."""

    tenant: Tenant
    api_key: ApiKey
    key: str = field(repr=False)


class AccountCalls(Calls):
    """What one stores, may have and used; one's keys; for operators, tenants."""

    async def usage(
        self, tenant: str | None = None, *, days: int = 0, timeout: float | None = None
    ) -> Usage:
        """Bytes stored, with one row per vPLM beside the size of the full model, all pages; limits
        and how much of them is used; and what was used on the last `days` days of UTC, today
        included."""
        name = str(self._scope.parent(tenant))
        latest: list[Usage] = []

        async def page(token: str) -> tuple[tuple[VplmUsage, ...], str]:
            request = storage_pb2.GetUsageRequest(
                name=name, page_size=PAGE_ROWS, page_token=token, first_day=_first_of(days)
            )
            with asking():
                response = await self._connection.storage.GetUsage(
                    request, timeout=timeout or READ_TIMEOUT_S
                )
            latest.append(codec.usage_from_pb(response))
            return latest[-1].vplms, response.next_page_token

        rows = tuple([row async for row in every(page)])
        return replace(latest[0], vplms=rows, next_page_token="")

    async def limits(
        self, tenant: str | None = None, *, timeout: float | None = None
    ) -> TenantLimits:
        """What one may have, and how much of today's is used; operators name the tenant."""
        name = str(self._scope.parent(tenant))
        with asking():
            response = await self._connection.accounts.GetLimits(
                accounting_pb2.GetLimitsRequest(name=name), timeout=timeout or READ_TIMEOUT_S
            )
        return codec.tenant_limits_from_pb(response)

    async def set_limits(
        self,
        tenant: str,
        limits: Mapping[Limit, int | None],
        *,
        timeout: float | None = None,
    ) -> TenantLimits:
        """For operators: set limits of a tenant, those named alone; None goes back to the default,
        `smile.accounting.NO_LIMIT` is none. Everybody goes by them within 2 minutes.

        Raises:
            NotFound: there is no such tenant.
            PermissionDenied: the key is not the operator's.
        """
        with asking():
            request = accounting_pb2.SetLimitsRequest(
                name=str(self._scope.parent(tenant)),
                limits=codec.limit_values(limits),
                request_id=new_request_id(),
            )
            response = await self._connection.accounts.SetLimits(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.tenant_limits_from_pb(response)

    async def usage_of_all(self, *, days: int = 1, timeout: float | None = None) -> PlatformUsage:
        """For operators: what every tenant used on the last `days` days of UTC, today included.

        Raises:
            PermissionDenied: the key is not the operator's.
        """
        by_day: list[UsageDay] = []

        async def page(token: str) -> tuple[list[TenantUsage], str]:
            request = accounting_pb2.ListUsageRequest(
                first_day=_first_of(days), page_size=PAGE_ROWS, page_token=token
            )
            with asking():
                response = await self._connection.accounts.ListUsage(
                    request, timeout=timeout or READ_TIMEOUT_S
                )
            by_day.extend(map(codec.usage_day_from_pb, response.days))
            found = [codec.tenant_usage_from_pb(each) for each in response.tenants]
            return found, response.next_page_token

        tenants = tuple([each async for each in every(page)])
        return PlatformUsage(tenants, tuple(by_day))

    async def keys(
        self, tenant: str | None = None, *, timeout: float | None = None
    ) -> AsyncGenerator[ApiKey, None]:
        """One's keys, revoked ones included, without secrets; operators name the tenant."""
        parent = str(self._scope.parent(tenant))

        async def page(token: str) -> tuple[list[ApiKey], str]:
            with asking():
                response = await self._connection.identity.ListApiKeys(
                    identity_pb2.ListApiKeysRequest(
                        parent=parent, page_size=PAGE_ROWS, page_token=token
                    ),
                    timeout=timeout or READ_TIMEOUT_S,
                )
            return [codec.api_key_from_pb(k) for k in response.api_keys], response.next_page_token

        async for key in every(page):
            yield key

    async def create_key(
        self,
        display_name: str = "",
        *,
        tenant: str | None = None,
        timeout: float | None = None,
    ) -> NewApiKey:
        """One more key. Raises `QuotaExceeded` where the tenant has 100."""
        with asking():
            request = identity_pb2.CreateApiKeyRequest(
                parent=str(self._scope.parent(tenant)),
                api_key=identity_pb2.ApiKey(display_name=display_name),
                request_id=new_request_id(),
            )
            made = await self._connection.identity.CreateApiKey(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return NewApiKey(codec.api_key_from_pb(made.api_key), made.key)

    async def revoke_key(self, key: str, *, timeout: float | None = None) -> None:
        """Revokes a key by its id or name; it stops working within 5 s. Raises `NotFound`."""
        with asking():
            request = identity_pb2.RevokeApiKeyRequest(
                name=str(self._scope.api_key(key)), request_id=new_request_id()
            )
            await self._connection.identity.RevokeApiKey(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )

    async def create_tenant(
        self,
        tenant: str,
        *,
        display_name: str = "",
        quota_bytes: int = 0,
        timeout: float | None = None,
    ) -> NewTenant:
        """For operators: a tenant and its first key. `quota_bytes` 0 means the default, 1 GiB.

        Raises:
            AlreadyExists: there is one of this name.
            PermissionDenied: the key is not the operator's.
        """
        with asking():
            request = identity_pb2.CreateTenantRequest(
                tenant_id=check_id(tenant, "tenant"),
                tenant=identity_pb2.Tenant(display_name=display_name, quota_bytes=quota_bytes),
                request_id=new_request_id(),
            )
            made = await self._connection.identity.CreateTenant(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return NewTenant(
            codec.tenant_from_pb(made.tenant), codec.api_key_from_pb(made.api_key), made.key
        )

    async def tenants(self, *, timeout: float | None = None) -> AsyncGenerator[Tenant, None]:
        """For operators: every tenant by id."""

        async def page(token: str) -> tuple[list[Tenant], str]:
            with asking():
                response = await self._connection.identity.ListTenants(
                    identity_pb2.ListTenantsRequest(page_size=PAGE_ROWS, page_token=token),
                    timeout=timeout or READ_TIMEOUT_S,
                )
            return [codec.tenant_from_pb(t) for t in response.tenants], response.next_page_token

        async for tenant in every(page):
            yield tenant


def _first_of(days: int) -> str:
    """The first of the last `days` days, in UTC; '' for none."""
    if days <= 0:
        return ""
    return (datetime.now(UTC).date() - timedelta(days=days - 1)).isoformat()
