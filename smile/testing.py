"""For tests, ours and those of people who build on SMILE: servers in this process, keys, a clock.

    async with serving([Service(...)], authenticator=FakeAuthenticator(keys)) as server:
        key = ApiKey(keys.tenant("acme"))
        async with build_channel(server.address, credentials=key) as channel:
            ...

The toy backbone is in `smile.model.toy`, so that nothing here reaches torch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr

from smile.config import ServiceSettings
from smile.names import tenant_id
from smile.rpc.auth import Authenticator, Principal, Role, ServiceKey, refuse_tenant_header
from smile.rpc.health import Readiness
from smile.rpc.keys import KeyKind, KeyParts, new_key, new_tenant_key, same, unauthenticated
from smile.rpc.server import RunningServer, Service, build_server

__all__ = ["FakeAuthenticator", "FakeClock", "FakeKeys", "Service", "serving", "settings"]


class FakeClock:
    """Monotonic seconds that pass when told to."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock does not go back, got {seconds}")
        self.now += seconds


class FakeKeys:
    """Fresh, well-formed keys of every kind, and who holds them."""

    def __init__(self) -> None:
        self.operator = new_key(KeyKind.OPERATOR).text
        self.service = new_key(KeyKind.SERVICE).text
        self._tenants: dict[str, KeyParts] = {}

    def tenant(self, tenant: str) -> str:
        """The key of `tenant`, made when first asked for."""
        return self._tenants.setdefault(tenant, new_tenant_key(tenant_id(tenant))).text

    def revoke(self, tenant: str) -> None:
        """Forget the key of `tenant`; the next is another."""
        self._tenants.pop(tenant, None)

    def holder(self, parts: KeyParts) -> Principal | None:
        """Who holds a tenant's or the operator's key; None where nobody does."""
        if parts.kind is KeyKind.OPERATOR and same(parts.text, self.operator):
            return Principal(Role.OPERATOR)
        known = self._tenants.get(parts.tenant or "")
        if known is None or not same(parts.text, known.text):
            return None
        return Principal(Role.TENANT, known.tenant, known.key_id)


class FakeAuthenticator:
    """An `Authenticator` over `FakeKeys`, with the rules of the real ones."""

    recheck_s = 0.0

    def __init__(self, keys: FakeKeys) -> None:
        self._keys = keys
        self._service_key = ServiceKey(keys.service)

    async def authenticate(self, key: str, tenant_header: str | None) -> Principal:
        parts = KeyParts.parse(key)
        if parts.kind is KeyKind.SERVICE:
            return self._service_key.principal(parts, tenant_header)
        principal = self._keys.holder(parts)
        if principal is None:
            raise unauthenticated()
        refuse_tenant_header(tenant_header)
        return principal


def settings(keys: FakeKeys | None = None, **changes: Any) -> ServiceSettings:
    """Settings for a server on a free port of this machine, with a short drain."""
    fields: dict[str, Any] = {
        "port": 0,
        "drain_s": 2.0,
        "service_key": SecretStr((keys or FakeKeys()).service),
        **changes,
    }
    return ServiceSettings(**fields)


@asynccontextmanager
async def serving(
    services: Sequence[Service],
    *,
    authenticator: Authenticator,
    server_settings: ServiceSettings | None = None,
    readiness: Readiness | None = None,
) -> AsyncIterator[RunningServer]:
    """The real server, around `services`, on a free port; stopped without grace at the end."""
    server = build_server(
        services,
        settings=server_settings or settings(),
        authenticator=authenticator,
        readiness=readiness or Readiness(),
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)
