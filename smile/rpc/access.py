"""Who may call which RPC, read from `option (smile.v1.access)` when a server starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf import descriptor, descriptor_pool

from smile.rpc.principal import Role
from smile.v1 import options_pb2

_ROLES = {
    options_pb2.ROLE_TENANT: Role.TENANT,
    options_pb2.ROLE_OPERATOR: Role.OPERATOR,
    options_pb2.ROLE_SERVICE: Role.SERVICE,
}


class AccessUndeclared(Exception):
    """RPCs about to be served lack `option (smile.v1.access)`; the message lists them."""


@dataclass(frozen=True, slots=True)
class MethodAccess:
    """One RPC and the roles that may call it."""

    path: str
    roles: frozenset[Role]


def declared_access(services: Iterable[str]) -> dict[str, MethodAccess]:
    """The access of every RPC of `services` (full names), by path `/{service}/{method}`.

    Raises:
        AccessUndeclared: an RPC names no role.
    """
    pool = descriptor_pool.Default()
    found = [
        _access(method)
        for service in services
        for method in pool.FindServiceByName(service).methods
    ]
    if missing := [access.path for access in found if not access.roles]:
        raise AccessUndeclared(
            "these RPCs do not declare option (smile.v1.access): " + ", ".join(missing)
        )
    return {access.path: access for access in found}


def _access(method: descriptor.MethodDescriptor) -> MethodAccess:
    declared = method.GetOptions().Extensions[options_pb2.access].roles
    return MethodAccess(
        path=f"/{method.containing_service.full_name}/{method.name}",
        roles=frozenset(_ROLES[role] for role in declared if role in _ROLES),
    )
