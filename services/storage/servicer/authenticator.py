"""Keys to principals where they are kept: no cache, so a revoked key stops at once."""

from __future__ import annotations

from services.storage.identity import Identity
from smile.names import ApiKeyName
from smile.rpc.auth import Principal, Role, ServiceKey, refuse_tenant_header
from smile.rpc.keys import KeyKind, KeyParts, same, unauthenticated


class LocalAuthenticator:
    """Checks keys against the store, the operator's and the services' against the settings.

    Args:
        identity: Tenants and keys.
        service_key: The key that services share.
        operator_key_sha256: SHA-256 of the operator's secret in hex; empty where there is none.
    """

    recheck_s = 1.0  # each look reads the store

    def __init__(self, identity: Identity, service_key: str, operator_key_sha256: str) -> None:
        self._identity = identity
        self._service_key = ServiceKey(service_key)
        self._operator_key_sha256 = operator_key_sha256

    async def authenticate(self, key: str, tenant_header: str | None) -> Principal:
        parts = KeyParts.parse(key)
        if parts.kind is KeyKind.SERVICE:
            return self._service_key.principal(parts, tenant_header)
        principal = await self.holder(parts)
        refuse_tenant_header(tenant_header)
        return principal

    async def holder(self, parts: KeyParts) -> Principal:
        """Who holds a tenant's or the operator's key. Raises `Unauthenticated`."""
        if parts.kind is KeyKind.OPERATOR:
            kept: str | None = self._operator_key_sha256
            principal = Principal(Role.OPERATOR)
        elif parts.tenant is not None and parts.key_id is not None:
            kept = await self._identity.secret_sha256(ApiKeyName(parts.tenant, parts.key_id))
            principal = Principal(Role.TENANT, parts.tenant, parts.key_id)
        else:
            raise unauthenticated()
        if not same(kept or "", parts.secret_sha256):
            raise unauthenticated()
        return principal
