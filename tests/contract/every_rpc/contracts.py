"""Every RPC, read from the compiled contracts."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import TypeAlias

from google.protobuf.descriptor import MethodDescriptor

import smile.v1
from smile.rpc.access import declared_access
from smile.rpc.principal import Role

# Where a service is served; all others are storage's.
HOMES = {"CreatorService": "creator", "TrainerService": "trainer", "ProcessorService": "processor"}

Path: TypeAlias = tuple[str, ...]


def _methods() -> Iterator[MethodDescriptor]:
    for found in pkgutil.iter_modules(smile.v1.__path__):
        if not found.name.endswith("_pb2"):
            continue
        module = importlib.import_module(f"smile.v1.{found.name}")
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def label(method: MethodDescriptor) -> str:
    """`CreatorService.GetVplm`: how tests call an RPC."""
    return f"{method.containing_service.name}.{method.name}"


METHODS: dict[str, MethodDescriptor] = {label(method): method for method in _methods()}
_ACCESS = declared_access({method.containing_service.full_name for method in METHODS.values()})


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def roles(method: MethodDescriptor) -> frozenset[Role]:
    """Who may call it."""
    return _ACCESS[path_of(method)].roles


TENANT_METHODS = {name: m for name, m in METHODS.items() if Role.TENANT in roles(m)}
UNARY_METHODS = {
    name: m for name, m in METHODS.items() if not m.client_streaming and not m.server_streaming
}
