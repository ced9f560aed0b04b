"""`IdentityService`: tenants and keys. Secrets are made here, shown once, and not kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import grpc
from google.protobuf import empty_pb2

from services.storage.identity import Identity, KeySecret, NewTenant, key_id_for
from services.storage.servicer.authenticator import LocalAuthenticator
from smile import codec
from smile.names import ApiKeyName, TenantName, tenant_id
from smile.pages import page_size
from smile.rpc.auth import Role, current_principal, own
from smile.rpc.keys import KeyKind, KeyParts, new_tenant_key, unauthenticated
from smile.v1 import identity_pb2, identity_pb2_grpc, options_pb2

FULL_NAME = "smile.v1.IdentityService"
_ROLES = {Role.TENANT: options_pb2.ROLE_TENANT, Role.OPERATOR: options_pb2.ROLE_OPERATOR}

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """Decodes, asks the identities, encodes."""

    def __init__(self, identity: Identity, authenticator: LocalAuthenticator) -> None:
        self._identity = identity
        self._authenticator = authenticator

    async def CreateTenant(
        self, request: identity_pb2.CreateTenantRequest, context: Context
    ) -> identity_pb2.CreateTenantResponse:
        new = _new_tenant(request)
        key = new_tenant_key(new.tenant)
        tenant, made = await self._identity.create_tenant(new, _secret(key))
        return identity_pb2.CreateTenantResponse(
            tenant=codec.tenant_to_pb(tenant),
            api_key=codec.api_key_to_pb(made.api_key),
            key=key.text if made.new else "",
        )

    async def ListTenants(
        self, request: identity_pb2.ListTenantsRequest, context: Context
    ) -> identity_pb2.ListTenantsResponse:
        tenants, token = await self._identity.list_tenants(
            page_size(request.page_size), request.page_token
        )
        return identity_pb2.ListTenantsResponse(
            tenants=[codec.tenant_to_pb(tenant) for tenant in tenants], next_page_token=token
        )

    async def CreateApiKey(
        self, request: identity_pb2.CreateApiKeyRequest, context: Context
    ) -> identity_pb2.CreateApiKeyResponse:
        tenant = own(request.parent, TenantName.parse, current_principal()).tenant
        key = replace(new_tenant_key(tenant), key_id=key_id_for(tenant, request.request_id))
        made = await self._identity.create_api_key(
            tenant, request.api_key.display_name, _secret(key), request.request_id
        )
        return identity_pb2.CreateApiKeyResponse(
            api_key=codec.api_key_to_pb(made.api_key), key=key.text if made.new else ""
        )

    async def ListApiKeys(
        self, request: identity_pb2.ListApiKeysRequest, context: Context
    ) -> identity_pb2.ListApiKeysResponse:
        tenant = own(request.parent, TenantName.parse, current_principal()).tenant
        keys, token = await self._identity.list_api_keys(
            tenant, page_size(request.page_size), request.page_token
        )
        return identity_pb2.ListApiKeysResponse(
            api_keys=[codec.api_key_to_pb(key) for key in keys], next_page_token=token
        )

    async def RevokeApiKey(
        self, request: identity_pb2.RevokeApiKeyRequest, context: Context
    ) -> empty_pb2.Empty:
        name = own(request.name, ApiKeyName.parse, current_principal())
        await self._identity.revoke_api_key(name)
        return empty_pb2.Empty()

    async def ResolveApiKey(
        self, request: identity_pb2.ResolveApiKeyRequest, context: Context
    ) -> identity_pb2.ResolveApiKeyResponse:
        parts = KeyParts.parse(request.key)
        if parts.kind is KeyKind.SERVICE:
            raise unauthenticated()
        principal = await self._authenticator.holder(parts)
        named = principal.tenant is not None and principal.key_id is not None
        return identity_pb2.ResolveApiKeyResponse(
            tenant=principal.tenant or "",
            role=_ROLES[principal.role],
            api_key=f"tenants/{principal.tenant}/apiKeys/{principal.key_id}" if named else "",
        )


def _new_tenant(request: identity_pb2.CreateTenantRequest) -> NewTenant:
    return NewTenant(
        tenant=tenant_id(request.tenant_id),
        display_name=request.tenant.display_name,
        quota_bytes=request.tenant.quota_bytes,
        request_id=request.request_id,
    )


def _secret(key: KeyParts) -> KeySecret:
    assert key.key_id is not None
    return KeySecret(key.key_id, key.secret_sha256)
