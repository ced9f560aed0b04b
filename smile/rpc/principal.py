"""Who is calling, and what is theirs.

The interceptor turns the key of a call into a `Principal` before anything else looks at the
request, so the tenant never comes from a request body. `own` is how handlers read resource names:
another tenant's name gives the same `NotFound` as one that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from smile.errors import NotFound, PermissionDenied
from smile.names import TenantId
from smile.rpc.context import TENANT_KEY
from smile.rpc.keys import unauthenticated

_MINE = "tenants/-"
_Name = TypeVar("_Name")
_principal: ContextVar[Principal | None] = ContextVar("smile_principal", default=None)


class Role(StrEnum):
    """Who holds a credential."""

    TENANT = "tenant"
    OPERATOR = "operator"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller.

    `tenant` is whose data the call may touch: the key's for tenants, the one named in `smile-
    tenant` for services (None where it named none), None for operators.
    """

    role: Role
    tenant: TenantId | None = None
    key_id: str | None = None


def set_principal(principal: Principal) -> None:
    """Make `principal` the caller for the rest of this task, and for what it starts."""
    _principal.set(principal)


def current_principal() -> Principal:
    """The caller of the RPC being served. Raises `Unauthenticated` outside of one."""
    principal = _principal.get()
    if principal is None:
        raise unauthenticated()
    return principal


def own(name_text: str, parser: Callable[[str], _Name], principal: Principal) -> _Name:
    """The resource name in `name_text`, as `principal` may use it.

    `tenants/-/...` means the principal's own tenant. Operators may name any tenant; services only
    the one they act for. `parser` is a name class's `parse`.

    Raises:
        InvalidName: the text is not such a name.
        NotFound: it is another tenant's.
        PermissionDenied: a service named a tenant's resource without acting for a tenant.
    """
    if principal.tenant is not None and (name_text + "/").startswith(_MINE + "/"):
        name_text = f"tenants/{principal.tenant}{name_text[len(_MINE) :]}"
    name = parser(name_text)
    if principal.role is Role.OPERATOR:
        return name
    if principal.tenant is None:
        raise PermissionDenied(
            f"a service names the tenant it acts for in the metadata '{TENANT_KEY}'",
            reason="TENANT_HEADER_REQUIRED",
        )
    if name_text.split("/")[1] != principal.tenant:
        raise not_found(name_text)
    return name


def not_found(name: object) -> NotFound:
    """The one answer for what is absent and for what is another tenant's."""
    return NotFound(f"{name} does not exist", metadata={"resource": str(name)})
