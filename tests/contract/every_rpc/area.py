"""What tests know of the RPCs of one service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from google.protobuf.message import Message

from tests.contract.every_rpc.belongings import Belongings

Requests: TypeAlias = "Message | list[Message]"


@dataclass(frozen=True)
class Area:
    """The requests of a service, and what their strings name.

    Fields are named by where they stand in `smile.v1`, as `GetVplmRequest.name`.

    Attributes:
        requests: By label, a request that succeeds, for every RPC that tenants may call. Made of
            a tenant's belongings and the bytes of a version of its.
        holding: By label and place of a string, a request that holds it, where the one above
            cannot, as they exclude each other.
        names: Fields that name a resource of a tenant.
        shared: Fields that name something all tenants share.
        output: Fields and messages of resources that servers set and never read.
        unusable: Fields for what tenants may not claim.
        free: Names of strings that name no resource, whatever message they are in.
    """

    requests: Mapping[str, Callable[[Belongings, bytes], Requests]] = field(default_factory=dict)
    holding: Mapping[tuple[str, str], Callable[[Belongings, bytes], Requests]] = field(
        default_factory=dict
    )
    names: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    output: frozenset[str] = frozenset()
    unusable: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
