"""Requests of tenants and keys."""

from __future__ import annotations

from smile.v1 import identity_pb2
from tests.contract.every_rpc.area import Area
from tests.contract.every_rpc.messages import new_id

AREA = Area(
    requests={
        "IdentityService.CreateApiKey": lambda own, _: identity_pb2.CreateApiKeyRequest(
            parent=own.parent, request_id=new_id()
        ),
        "IdentityService.ListApiKeys": lambda own, _: identity_pb2.ListApiKeysRequest(
            parent=own.parent
        ),
        "IdentityService.RevokeApiKey": lambda own, _: identity_pb2.RevokeApiKeyRequest(
            name=own.keys[1], request_id=new_id()
        ),
    },
    names=frozenset(
        {
            "CreateApiKeyRequest.parent",
            "ListApiKeysRequest.parent",
            "RevokeApiKeyRequest.name",
        }
    ),
    output=frozenset(
        {
            "ApiKey.name",
        }
    ),
    free=frozenset(
        {
            "display_name",
        }
    ),
)
